"""torch.library.opcheck on the raw ops, torch.compile without graph breaks, and autocast."""

import pytest
import torch
from errors import raises
from judging import call_bank
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import mop_kernels as mk
from mop_kernels import MOPFeedForward, PHMLinear, ops, testing
from mop_kernels.testing import BANKS, SHAPES
from mop_kernels.truth import kron_weight


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def phm_arguments(name, dtype=torch.float32):
    """The arguments of a raw op, gradients asked for all inputs."""
    lowrank = testing.lowrank_inputs(SHAPES["odd"], dtype)
    linear = testing.linear_inputs(SHAPES["odd"], dtype)
    grad = torch.randn(SHAPES["odd"].rows, SHAPES["odd"].d_out, dtype=dtype)
    return {
        "phm_weight": linear[1:3],
        "phm_weight_backward": [kron_weight(*linear[1:3]), *linear[1:3], 0b11],
        "phm_linear": linear,
        "phm_linear_backward": [grad, *linear[:3], 0b1111],
        "lowrank_phm_linear": lowrank,
        "lowrank_phm_linear_backward": [grad, *lowrank[:4], 0b11111],
    }[name]


def mop_arguments(name, experts, dtype=torch.float32):
    x, *factors = testing.mop_inputs(BANKS["small"], dtype)
    common = (x, factors[:4], factors[4:], 2, "gelu", experts)
    if name == "mop_ffn":
        return common
    return ([torch.randn_like(y) for y in ops.get("mop_ffn", "reference")(*common)], *common, (1 << 13) - 1)


@pytest.mark.parametrize("name", [name for name in ops.SCHEMAS if "phm" in name])
def test_opcheck(name, dtype, backend):
    if (backend, dtype) == ("cpu", torch.bfloat16):
        dtype = torch.float32  # the op itself takes float32 and float64; autograd.py casts
    torch.library.opcheck(ops.get(name, backend), phm_arguments(name, dtype))


@pytest.mark.parametrize("experts", [None, [2, 0]], ids=["all", "some"])
@pytest.mark.parametrize("name", ["mop_ffn", "mop_ffn_backward"])
def test_opcheck_of_mop_ffn(name, experts, backend):
    experts = None if experts is None else torch.tensor(experts)
    torch.library.opcheck(ops.get(name, backend), mop_arguments(name, experts))


def compiled_equals_eager(function, tensors, compiler, tolerance):
    leaves = [t.requires_grad_() for t in tensors]
    eager = function(*leaves)
    grads = [torch.randn_like(y) for y in eager]
    expected = [*eager, *torch.autograd.grad(eager, leaves, grads)]
    found = torch.compile(function, backend=compiler, fullgraph=True)(*leaves)
    found = [*found, *torch.autograd.grad(found, leaves, grads)]
    for a, b in zip(found, expected, strict=True):
        assert a.is_contiguous() == b.is_contiguous()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def phm_operations(backend):
    """All three single-layer operations, with plain torch in between."""

    def function(x, rule_in, rule_out, local, bias):
        y = mk.lowrank_phm_linear(x * 2, rule_in, rule_out, local, bias, backend=backend)
        rule = rule_in @ rule_out
        z = mk.phm_linear(x, rule, local, bias, backend=backend)
        return y.relu() + z, mk.phm_weight(rule, local, backend=backend)

    return function


def test_aot_eager(dtype, backend):
    compiled_equals_eager(phm_operations(backend), testing.lowrank_inputs(SHAPES["odd"], dtype), "aot_eager", 0)


@pytest.mark.parametrize("experts", [None, [2, 0]], ids=["all", "some"])
@pytest.mark.parametrize("full_rule", [False, True])
def test_aot_eager_of_mop_ffn(full_rule, experts, backend):
    tensors = testing.mop_inputs(BANKS["small"], torch.float32, full_rule=full_rule)
    present = [k for k, t in enumerate(tensors) if t is not None]
    experts = None if experts is None else torch.tensor(experts)

    def function(*given):
        every = [None] * len(tensors)
        for k, t in zip(present, given):
            every[k] = t
        return call_bank(every, activation="silu", experts=experts, backend=backend)

    compiled_equals_eager(function, [tensors[k] for k in present], "aot_eager", 0)


def test_inductor(backend):
    compiled_equals_eager(
        phm_operations(backend), testing.lowrank_inputs(SHAPES["odd"], torch.float32), "inductor", 1e-5
    )


@pytest.mark.filterwarnings("ignore:mop_kernels uses its slow reference")
def test_automatic_choice_compiles():
    """float16 lands on the reference, whose warning must not break the graph."""
    compiled_equals_eager(phm_operations(None), testing.lowrank_inputs(SHAPES["odd"], torch.float16), "aot_eager", 0)


@pytest.mark.parametrize("make", [lambda: PHMLinear(24, 12, rank=1, local_rank=2), lambda: PHMLinear(24, 12)])
def test_layer_takes_any_number_of_rows_without_recompiling(make, backend):
    counter = CompileCounterWithBackend("aot_eager")
    layer = make()
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    with mk.use_backend(backend):
        for rows in (5, 8, 13, 200):
            x = torch.randn(rows, 24, requires_grad=True)
            torch.testing.assert_close(compiled(x), layer(x))
            compiled(x).sum().backward()
    assert counter.frame_count == 1


def test_bank_takes_any_number_of_rows_without_recompiling(backend):
    counter = CompileCounterWithBackend("aot_eager")
    bank = MOPFeedForward(2, 3, 24, 16, 36, terms_down=4, terms_up=2)
    compiled = torch.compile(bank, backend=counter, fullgraph=True, dynamic=True)
    with mk.use_backend(backend):
        for rows in (5, 8, 13, 40):
            x = torch.randn(rows, 24)
            for found, expected in zip(compiled(x), bank(x), strict=True):
                torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


def test_flop_counter_sees_forward_and_backward(backend):
    """A TorchDispatchMode must not break the gradient ops."""
    leaves = [t.requires_grad_() for t in testing.lowrank_inputs(SHAPES["odd"], torch.float32)]
    with FlopCounterMode(display=False):
        mk.lowrank_phm_linear(*leaves, backend=backend).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


def autocast(like):
    return torch.autocast(like.device.type, torch.bfloat16)


AUTOCAST = ["phm_weight", "phm_linear", "lowrank_phm_linear"]


@pytest.mark.parametrize("op", AUTOCAST)
def test_autocast_casts_as_linear_does(op, backend):
    inputs = testing.lowrank_inputs if op == "lowrank_phm_linear" else testing.linear_inputs
    tensors = inputs(SHAPES["odd"], torch.float32)
    tensors = tensors[1:3] if op == "phm_weight" else tensors
    leaves = [t.requires_grad_() for t in tensors]
    function = getattr(mk, op)
    with autocast(leaves[0]):
        y = function(*leaves, backend=backend)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, function(*(t.detach().bfloat16() for t in leaves), backend=backend))
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    assert [g.dtype for g in gradients] == [torch.float32] * len(leaves)


def test_compiled_autocast(backend):
    tensors = testing.lowrank_inputs(SHAPES["odd"], torch.float32)

    def function(*t):
        with autocast(t[0]):
            return phm_operations(backend)(*t)

    compiled_equals_eager(function, tensors, "aot_eager", 0)


def test_autocast_of_mop_ffn(backend):
    leaves = [t.requires_grad_() for t in testing.mop_inputs(BANKS["small"], torch.float32)]
    with autocast(leaves[0]):
        outputs = call_bank(leaves, backend=backend)
    half = call_bank([t.detach().bfloat16() for t in leaves], backend=backend)
    assert all(torch.equal(a, b) and a.dtype == torch.bfloat16 for a, b in zip(outputs, half, strict=True))
    sum(y.float().sum() for y in outputs).backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_autocast_leaves_float64_alone(backend, float64):
    tensors = testing.lowrank_inputs(SHAPES["odd"], float64)
    plain = mk.lowrank_phm_linear(*tensors, backend=backend)
    with autocast(tensors[0]):
        assert torch.equal(mk.lowrank_phm_linear(*tensors, backend=backend), plain)
        with raises(TypeError, "x", "torch.float64", "rule_in", "torch.bfloat16"):
            mk.lowrank_phm_linear(tensors[0], *(t.float() for t in tensors[1:]), backend=backend)


@pytest.mark.parametrize("op", AUTOCAST)
def test_backward_inside_autocast_gives_the_gradients_of_forward(op, backend):
    """As of F.linear: what forward computed in float32 is not differentiated in bfloat16."""
    inputs = testing.lowrank_inputs if op == "lowrank_phm_linear" else testing.linear_inputs
    tensors = inputs(SHAPES["odd"], torch.float32)
    leaves = [t.requires_grad_() for t in (tensors[1:3] if op == "phm_weight" else tensors)]
    loss = getattr(mk, op)(*leaves, backend=backend).square().sum()
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    with autocast(leaves[0]):
        found = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
