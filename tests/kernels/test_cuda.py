"""What holds on a GPU only: graphs, streams, devices, autocast there, and more elements than int32 counts."""

import subprocess
import sys

import pytest
import torch
from judging import assert_same, call_bank

import mop_kernels as mk
from mop_kernels import backends, self_check, testing
from mop_kernels.testing import BANKS, SHAPES, Bank, Shape

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

PAST_INT32 = 2**31
ROOM = 24 * 2**30


@pytest.fixture(params=["triton", "cuda"], autouse=True)
def backend(request):
    """Each in turn, its tensors on the GPU."""
    reason = backends.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    with torch.device("cuda"), mk.use_backend(request.param):
        yield request.param


def forward_and_backward(tensors, grads, **kwargs):
    outputs = call_bank(tensors, **kwargs)
    return [*outputs, *torch.autograd.grad(outputs, tensors, grads)]


def leaves_and_gradients(dtype=torch.float32, seed=0, experts=3):
    tensors = [t.requires_grad_() for t in testing.mop_inputs(BANKS["small"], dtype, seed=seed)]
    return tensors, [torch.randn(2, experts, 6, 18, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("experts", [None, [2, 0]], ids=["all", "some"])
def test_a_replayed_graph_is_the_eager_call(experts, dtype):
    """Forward and backward capture, so nothing synchronises; a replay reads the inputs as they are then."""
    tensors, grads = leaves_and_gradients(dtype, experts=3 if experts is None else 2)
    experts = None if experts is None else torch.tensor(experts)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what compiles and allocates on the first call does so before the capture
        forward_and_backward(tensors, grads, experts=experts)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(tensors, grads, experts=experts)
    with torch.no_grad():
        for tensor, other in zip(tensors, testing.mop_inputs(BANKS["small"], dtype, seed=7), strict=True):
            tensor.copy_(other)
    graph.replay()
    for found, expected in zip(captured, forward_and_backward(tensors, grads, experts=experts), strict=True):
        assert torch.equal(found, expected)


def test_every_gpu_launches_what_is_right(backend):
    for index in range(torch.cuda.device_count()):
        if torch.cuda.get_device_capability(index) >= backends._OLDEST_GPU:
            assert self_check.failure(backend, index) is None


def test_a_first_call_may_be_captured(backend, monkeypatch):
    """Nobody has asked before whether the backend launches: the capture is left alone, a later call asks."""
    x, *factors = testing.lowrank_inputs(SHAPES["paper_down"], torch.float32)
    expected = mk.lowrank_phm_linear(x, *factors)  # compiles
    asked = []
    monkeypatch.setattr(backends, "_verdicts", {})
    monkeypatch.setattr(self_check, "_launch", lambda *what: asked.append(what))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mk.lowrank_phm_linear(x, *factors)
    assert not asked
    graph.replay()
    assert torch.equal(found, expected)
    mk.lowrank_phm_linear(x, *factors)
    assert asked == [(backend, torch.device("cuda", torch.cuda.current_device()))]


def test_the_current_stream_is_used():
    """x arrives late on a side stream; a kernel on any other stream would not wait for it."""
    x, *factors = testing.lowrank_inputs(SHAPES["paper_down"], torch.float32)
    expected = mk.lowrank_phm_linear(x, *factors)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        late.copy_(x)
        found = mk.lowrank_phm_linear(late, *factors)
    side.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("op", ["phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn"])
def test_a_device_that_is_not_the_current_one(op):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")

    def found_on(device):
        with torch.device(device):
            if op == "mop_ffn":
                tensors = testing.mop_inputs(BANKS["small"], torch.float32)
            else:
                inputs = testing.lowrank_inputs if op == "lowrank_phm_linear" else testing.linear_inputs
                tensors = inputs(SHAPES["odd"], torch.float32)
                tensors = tensors[1:3] if op == "phm_weight" else tensors
        function = call_bank if op == "mop_ffn" else lambda t, **kwargs: getattr(mk, op)(*t, **kwargs)
        leaves = [t.requires_grad_() for t in tensors]
        outputs = function(leaves)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        results = [*outputs, *torch.autograd.grad([y.sum() for y in outputs], leaves)]
        assert {str(t.device) for t in results} == {device}
        return results

    assert torch.cuda.current_device() == 0
    for a, b in zip(found_on("cuda:0"), found_on("cuda:1"), strict=True):
        assert torch.equal(a, b.to(a.device))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(half):
    tensors, grads = leaves_and_gradients()
    with torch.autocast("cuda", half):
        outputs = call_bank(tensors)
    expected = call_bank([t.detach().to(half) for t in tensors])
    assert all(torch.equal(a, b) and a.dtype == half for a, b in zip(outputs, expected, strict=True))
    gradients = torch.autograd.grad(outputs, tensors, [g.to(half) for g in grads])
    assert {g.dtype for g in gradients} == {torch.float32}


def test_tf32_only_where_torch_allows_it(backend):
    """Values of 1 + 2^-12 lose their last bit in TF32, which keeps ten. The CUDA kernels know no TF32."""
    shape = Shape(64, 4, 4, 4, 64, 64, 1)
    x, rule_in, rule_out, local, _ = (torch.ones_like(t) for t in testing.lowrank_inputs(shape, torch.float32))
    x += 2.0**-12
    exact = (x[:, :1].double() * shape.d_in * shape.terms).expand(-1, shape.d_out)
    y = mk.lowrank_phm_linear(x, rule_in, rule_out, local)
    assert testing.relative_error(y, exact) < 2.0**-20
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        y = mk.lowrank_phm_linear(x, rule_in, rule_out, local)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert testing.relative_error(y, exact) < (2.0**-20 if backend == "cuda" else 2.0**-9)


def needs_room():
    if torch.cuda.mem_get_info()[0] < ROOM:
        pytest.skip(f"needs {ROOM // 2**30} GiB of free GPU memory")


def assert_rows_are_right(function, x, factors):
    """The last rows, and the gradient there, are those of a call on the last rows alone."""
    few = 8
    leaf = x.requires_grad_()
    y = function(leaf, *factors)
    assert y.numel() > PAST_INT32
    alone = x[-few:].detach().clone().requires_grad_()
    expected = function(alone, *factors)
    torch.testing.assert_close(y[-few:], expected, rtol=0.02, atol=0.02)
    (found,) = torch.autograd.grad(y.sum(), leaf)
    (gradient,) = torch.autograd.grad(expected.sum(), alone)
    torch.testing.assert_close(found[-few:], gradient, rtol=0.02, atol=0.02 * gradient.abs().max().item())


@pytest.mark.parametrize("op", ["phm_linear", "lowrank_phm_linear"])
def test_more_outputs_than_int32_counts(op):
    needs_room()
    shape = Shape(PAST_INT32 // 4096 + 5, 4, 4, 4, 4, 1024, 1)
    inputs = testing.lowrank_inputs if op == "lowrank_phm_linear" else testing.linear_inputs
    x, *factors = inputs(shape, torch.bfloat16)
    assert_rows_are_right(lambda *t: getattr(mk, op)(*t), x, factors)


def test_more_outputs_of_a_bank_than_int32_counts(backend):
    needs_room()
    rows, experts = 4096, 131
    bank = Bank(1, experts, Shape(rows, 4, 4, 4, 4, 4, 1), Shape(rows, 4, 4, 4, 4, 1024, 1), maps=1)
    tensors = testing.mop_inputs(bank, torch.bfloat16)
    (y,) = call_bank(tensors)
    assert y.numel() > PAST_INT32
    (alone,) = call_bank(tensors, experts=torch.tensor([experts - 1]))
    assert_same(y[:, -1:], alone, backend)
    leaf = tensors[3].requires_grad_()  # the down map's local
    (found,) = torch.autograd.grad(call_bank(tensors)[0].sum(), leaf)
    last = torch.tensor([experts - 1])
    (gradient,) = torch.autograd.grad(call_bank(tensors, experts=last)[0].sum(), leaf)
    torch.testing.assert_close(found[:, -1], gradient[:, -1], rtol=0.02, atol=0.02 * gradient.abs().max().item())


def test_a_weight_of_more_elements_than_int32_counts():
    needs_room()
    g = torch.Generator().manual_seed(0)
    rule = testing.normal(g, torch.bfloat16, 2, 64, 64)
    local = testing.normal(g, torch.bfloat16, 2, 1024, 520)
    weight = mk.phm_weight(rule, local)
    assert weight.numel() > PAST_INT32
    last = mk.phm_weight(rule[:, -1:], local[:, -1:], backend="reference")
    torch.testing.assert_close(weight[-1:], last, rtol=0.02, atol=0.02)


OUT_OF_RANGE = """
import torch, mop_kernels as mk
from mop_kernels import testing
with torch.device("cuda"), mk.use_backend({backend!r}):
    x, down, ups = testing.as_mop_arguments(testing.mop_inputs(testing.BANKS["small"], torch.float32))
    maps = [mk.LowRankPHM(*(t.requires_grad_() for t in phm)) for phm in (down, *ups)]
    outputs = mk.mop_ffn(x, maps[0], maps[1:], experts=torch.tensor({experts}))
    torch.cuda.synchronize()
    print("forward ended", flush=True)
    sum(y.sum() for y in outputs).backward()
    torch.cuda.synchronize()
    print("backward ended", flush=True)
"""


@pytest.mark.parametrize("experts", [[0, 3], [-1], [2, 0, 2]], ids=["too large", "negative", "twice"])
def test_experts_that_do_not_exist_or_come_twice_stop_the_program(experts, backend):
    """Reading them back would make every call wait, so the kernels look. In a process of its own, which is lost."""
    script = OUT_OF_RANGE.format(backend=backend, experts=experts)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ("forward ended" in done.stdout) == (experts == [2, 0, 2])
    assert "backward ended" not in done.stdout
