"""Two runs give the same bits, compiled kernels on any number of threads, and results share memory with nothing."""

import pytest
import torch
from judging import call_bank

import mop_kernels as mk
from mop_kernels import available_backends, testing
from mop_kernels.testing import BANKS, SHAPES

COMPILED = [name for name in available_backends() if name == "cpu"]  # the one whose work is shared by threads
CASES = ["phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn", "mop_ffn some experts"]
CASES += ["rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout"]


def drawn(*shapes):
    g = torch.Generator().manual_seed(2)
    return [testing.normal(g, torch.float32, *shape) for shape in shapes]


STEP_INPUTS = {  # row-wise operations: several blocks of rows, the last not full
    "rms_norm": lambda: drawn((3, 77, 130), (130,)),
    "dropout_add": lambda: drawn((3, 77, 130), (3, 77, 130)),
    "relu_dropout": lambda: drawn((3, 77, 130)),
    "gated_gelu_dropout": lambda: drawn((3, 77, 130), (3, 77, 130)),
}


def case(name, backend):
    """A function of no arguments: all outputs and gradients of one call at a size that several threads share."""
    if name.startswith("mop_ffn"):
        tensors = testing.mop_inputs(BANKS["paper"]._replace(layers=2), torch.float32)
        experts = torch.tensor([3, 0]) if name.endswith("experts") else None

        def function(*t):
            return call_bank(t, experts=experts, backend=backend)
    elif name in STEP_INPUTS:
        tensors = STEP_INPUTS[name]()

        def function(*t):
            settings = () if name == "rms_norm" else (0.1, 7)
            return getattr(mk, name)(*t, *settings, backend=backend)
    else:
        inputs = testing.lowrank_inputs if name == "lowrank_phm_linear" else testing.linear_inputs
        tensors = inputs(SHAPES["paper_down"]._replace(rows=301), torch.float32)
        tensors = tensors[1:3] if name == "phm_weight" else tensors

        def function(*t):
            return getattr(mk, name)(*t, backend=backend)

    outputs = function(*tensors)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    g = torch.Generator().manual_seed(1)
    grads = [testing.normal(g, torch.float32, *y.shape) for y in outputs]
    return lambda: [t for found in testing.value_and_gradients(function, tensors, grads) for t in found]


def assert_equal_bits(first, second):
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"tensor {k} differs by up to {(a - b).abs().max().item()}"


@pytest.mark.parametrize("name", CASES)
def test_two_runs_are_bit_equal(name, backend):
    run = case(name, backend)
    assert_equal_bits(run(), run())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_threads_gives_the_same_bits(name, compiled, threads):
    run = case(name, compiled)
    threads(1)
    alone = run()
    for count in (2, 3):
        threads(count)
        assert_equal_bits(run(), alone)


def test_two_callers_at_once(backend):
    """Kernels keep no state between calls that another thread's call could overwrite."""
    from concurrent.futures import ThreadPoolExecutor

    run = case("mop_ffn", backend)
    alone = run()
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: run(), range(4)):
            assert_equal_bits(found, alone)


def test_results_share_memory_with_nothing(backend):
    """A gradient that is the output's gradient itself would change with it."""
    tensors = testing.lowrank_inputs(SHAPES["one_row"], torch.float32)
    grad = torch.randn(1, SHAPES["one_row"].d_out)
    outputs, gradients = testing.value_and_gradients(
        lambda *t: mk.lowrank_phm_linear(*t, backend=backend), tensors, [grad]
    )
    taken = [t.untyped_storage().data_ptr() for t in (*tensors, grad, *outputs, *gradients)]
    assert len(set(taken)) == len(taken)
