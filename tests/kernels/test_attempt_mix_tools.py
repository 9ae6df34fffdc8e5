"""attempt_mix under torch.compile, autocast and opcheck, and the choice of its backend."""

import pytest
import torch
from errors import raises
from judging import call_prompts, raw_prompt_arguments
from torch._dynamo.testing import CompileCounterWithBackend

import mop_kernels as mk
from mop_kernels import backends, explain, ops, testing
from mop_kernels.testing import PROMPTS

SMALL = PROMPTS["odd"]


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_opcheck(masked, dtype, backend):
    if (backend, dtype) == ("cpu", torch.bfloat16):
        dtype = torch.float32  # the op itself takes float32 and float64; autograd.py casts
    tensors, options = testing.prompt_inputs(SMALL, dtype)
    arguments = raw_prompt_arguments(tensors[0], options["mask"] if masked else None)
    forward, backward = (ops.get(name, backend) for name in ("attempt_mix", "attempt_mix_backward"))
    torch.library.opcheck(forward, arguments)
    prefixed, attention, peak, position = forward(*arguments)
    torch.library.opcheck(backward, [prefixed, attention, peak, position, *arguments[2:], 0b1111111])


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_aot_eager(masked, backend, fresh_compiler):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    mask, leaves = options.pop("mask"), [t.requires_grad_() for t in tensors]

    def function(x, mask, *factors):
        prefixed, attention = call_prompts([x * 2, *factors], mask, **options, backend=backend)
        return prefixed.relu(), attention

    grads = [torch.randn_like(y) for y in function(leaves[0], mask, *leaves[1:])]
    found = []
    for way in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        outputs = way(leaves[0], mask if masked else None, *leaves[1:])
        found.append([*outputs, *torch.autograd.grad(outputs, leaves, grads)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_any_batch_and_length_without_recompiling(backend, fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")
    leaves = [t.requires_grad_() for t in testing.prompt_inputs(SMALL, torch.float32)[0]]

    def function(x, mask, task_ids):
        return call_prompts([x, *leaves[1:]], mask, task_ids=task_ids, temperature=7.5, backend=backend)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for batch, length in ((11, 6), (3, 8), (7, 4), (9, 31)):  # sizes equal at first would be taken for one
        arguments = (
            torch.randn(batch, length, SMALL.width),
            torch.rand(batch, length) > 0.5,
            torch.randint(SMALL.tasks, (batch,)),
        )
        for a, b in zip(compiled(*arguments), function(*arguments), strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_autocast_casts_as_linear_does(backend):
    if backend == "triton" and backends.interpreting():
        pytest.skip("bfloat16 products are wrong in Triton's interpreter")
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast(leaves[0].device.type, torch.bfloat16):
        outputs = call_prompts(leaves, **options, backend=backend)
    half = call_prompts([t.detach().bfloat16() for t in tensors], **options, backend=backend)
    assert all(torch.equal(a, b) and a.dtype == torch.bfloat16 for a, b in zip(outputs, half, strict=True))
    gradients = torch.autograd.grad(sum(y.float().sum() for y in outputs), leaves)
    assert {g.dtype for g in gradients} == {torch.float32}


def test_backward_inside_autocast_gives_the_gradients_of_forward(backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    loss = sum(y.square().sum() for y in call_prompts(leaves, **options, backend=backend))
    without = torch.autograd.grad(loss, leaves, retain_graph=True)
    with torch.autocast(leaves[0].device.type, torch.bfloat16):
        within = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(within, without, strict=True))


# The choice of the backend.


def test_cuda_has_none_and_says_so(monkeypatch):
    monkeypatch.setattr(backends, "why_not", lambda name, device=None: None)
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    with raises(RuntimeError, "backend", "'cuda'", "attempt_mix"):
        call_prompts(tensors, **options, backend="cuda")
    with mk.use_backend("cuda"), raises(RuntimeError, "'cuda'", "use_backend", "attempt_mix"):
        call_prompts(tensors, **options)


def test_auto_on_a_gpu_takes_triton(monkeypatch):
    monkeypatch.delenv("MOP_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(backends, "why_not", lambda name, device=None: None)
    kind = (torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert backends.resolve(None, *kind, "attempt_mix") == "triton"
    assert backends.resolve(None, *kind, "mop_ffn") == "cuda"
    assert "cuda has no attempt_mix" in explain.reason_of(None, *kind, "attempt_mix")


def test_explain_backend(backend):
    (x, *prompts), options = testing.prompt_inputs(SMALL, torch.float32)
    said = mk.explain_backend("attempt_mix", x, options["mask"], *prompts[:2], backend=backend)
    assert said.startswith(f"attempt_mix: backend {backend} (asked for by the argument backend=)\nmethod: ")
