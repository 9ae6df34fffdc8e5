"""The operations of a frozen T5's training step beside PyTorch's forms: time, and memory for backward.

The shapes are those of T5-small with 8 dialogues of 256 tokens and 64 summary tokens, dropout 0.1, float32. PyTorch's
forms of attention join the prefix to keys and values and expand the masks, as a user without a kernel does.
benchmarks/train_step.py times whole steps.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.testing import AttentionShape

P = 0.1
# the shape, and the share of the keys that are no padding
ATTENTIONS = {
    "encoder, 256 queries, 256 keys": (AttentionShape(8, 8, 256, 256, 64, 40, 5, False), 1.0),
    "encoder, 256 queries, 256 keys, 63 % real": (AttentionShape(8, 8, 256, 256, 64, 40, 5, False), 0.63),
    "decoder, 64 queries, 64 keys, causal": (AttentionShape(8, 8, 64, 64, 64, 40, 5, True), 1.0),
    "cross-attention, 64 queries, 256 keys": (AttentionShape(8, 8, 64, 256, 64, 40, 5, False), 1.0),
    "512 queries, 512 keys, causal": (AttentionShape(4, 8, 512, 512, 64, 40, 5, True), 1.0),
}
SMALL_ATTENTION = AttentionShape(2, 2, 5, 7, 8, 3, 5, False)


def attention_tensors(shape: AttentionShape, real: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return [query, key, value, prefix_key, prefix_value, bias], rows, and key_mask. Layouts are those of T5."""
    drawn, _ = testing.attention_inputs(shape, torch.float32)
    *projected, prefix_key, prefix_value, bias = (t for t in drawn if t is not None)
    projected = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in projected]
    mask = torch.ones(shape.batch, shape.keys, dtype=torch.bool)
    for row, length in enumerate(torch.linspace(2 * real - 1, 1, shape.batch).tolist()):
        mask[row, max(1, round(length * shape.keys)) :] = False
    return [*projected, prefix_key, prefix_value, bias], torch.arange(shape.batch) % shape.rows, mask


def fused(shape: AttentionShape, tensors: list[Tensor], rows: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return our attention."""
    *prefixed, bias = tensors
    options: dict[str, Any] = {"rows": rows, "bias": bias, "key_mask": mask, "causal": shape.causal}
    return mk.prefix_attention(*prefixed, **options, scale=1.0, dropout=p)


def joined(shape: AttentionShape, tensors: list[Tensor], rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the joined keys and values, and the whole additive mask."""
    _, key, value, prefix_key, prefix_value, bias = tensors
    allowed = mask[:, None, None, :]
    if shape.causal:
        allowed = allowed & torch.ones(shape.queries, shape.keys, dtype=torch.bool).tril()
    added = F.pad(torch.where(allowed, bias, torch.finfo(bias.dtype).min), (shape.prefix, 0))
    return torch.cat([prefix_key[rows], key], 2), torch.cat([prefix_value[rows], value], 2), added


def by_sdpa(shape: AttentionShape, tensors: list[Tensor], rows: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return torch's fused attention on joined keys and values."""
    key, value, added = joined(shape, tensors, rows, mask)
    return F.scaled_dot_product_attention(tensors[0], key, value, added, dropout_p=p, scale=1.0)


def by_products(shape: AttentionShape, tensors: list[Tensor], rows: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return softmax and dropout between two batched products."""
    key, value, added = joined(shape, tensors, rows, mask)
    return F.dropout((tensors[0] @ key.mT + added).softmax(-1), p) @ value


FORMS: dict[str, Callable[..., Tensor]] = {
    "prefix_attention": fused,
    "joined, scaled_dot_product_attention": by_sdpa,
    "joined, matmul, softmax, dropout": by_products,
}


def kind_of(form: str) -> str:
    """Return the kind of a form: ours begins with the name of an operation."""
    return "ours" if hasattr(mk, form.split()[0]) else "form"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name, form, full_size, timed):
    shape, real = ATTENTIONS[name]
    if not full_size:
        shape = SMALL_ATTENTION._replace(causal=shape.causal)
    tensors, rows, mask = attention_tensors(shape, real)
    exact = by_products(shape, [t.double() for t in tensors], rows, mask, 0.0)
    found = FORMS[form](shape, tensors, rows, mask, 0.0)
    assert testing.relative_error(found, exact) < 1e-4
    *leaves, bias = tensors
    for leaf in leaves:
        leaf.requires_grad_()
    grad = torch.randn(found.transpose(1, 2).shape).transpose(1, 2)
    group = f"attention with 40 prefix rows, dropout 0.1, forward + backward: {name}"
    outputs = partial(FORMS[form], shape, [*leaves, bias], rows, mask, P)
    timed(lambda: torch.autograd.grad(outputs(), leaves, grad), group, form, kind=kind_of(form))


def _new_gelu(gate: Tensor) -> Tensor:
    return 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0))))


RESIDUAL, NORM = "residual + dropout of 2048 x 512", "RMS norm of 2048 x 512, frozen weight"
RELU, GATED = "ReLU + dropout of 2048 x 2048", "gated GELU + dropout of 2048 x 1024"
NETWORK = "network 512 -> 2048 -> 512 on 2048 rows, frozen weights"
# table -> sizes of the tensors, and how many of them have gradients
ROWWISE: dict[str, tuple[list[tuple[int, ...]], int]] = {
    RESIDUAL: ([(2048, 512), (2048, 512)], 2),
    NORM: ([(2048, 512), (512,)], 1),
    RELU: ([(2048, 2048)], 1),
    GATED: ([(2048, 1024), (2048, 1024)], 2),
    NETWORK: ([(2048, 512), (2048, 512), (512, 2048)], 1),
}
ROWWISE_FORMS: dict[tuple[str, str], Callable[..., Tensor]] = {
    (RESIDUAL, "dropout_add"): lambda x, residual: mk.dropout_add(x, residual, P),
    (RESIDUAL, "residual + F.dropout(x)"): lambda x, residual: residual + F.dropout(x, P),
    (NORM, "rms_norm"): mk.rms_norm,
    (NORM, "T5LayerNorm"): lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    (NORM, "F.rms_norm"): lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
    (RELU, "relu_dropout"): lambda x: mk.relu_dropout(x, P),
    (RELU, "F.dropout(x.relu())"): lambda x: F.dropout(x.relu(), P),
    (GATED, "gated_gelu_dropout"): lambda gate, x: mk.gated_gelu_dropout(gate, x, P),
    (GATED, "F.dropout(NewGELUActivation(gate) * x)"): lambda gate, x: F.dropout(_new_gelu(gate) * x, P),
    (GATED, "F.dropout(F.gelu(gate) * x)"): lambda gate, x: F.dropout(F.gelu(gate, approximate="tanh") * x, P),
    (NETWORK, "relu_dropout inside"): lambda x, up, down: F.linear(mk.relu_dropout(F.linear(x, up), P), down),
    (NETWORK, "PyTorch"): lambda x, up, down: F.linear(F.dropout(F.linear(x, up).relu(), P), down),
}


@pytest.mark.parametrize(("table", "form"), ROWWISE_FORMS)
def test_rowwise(table, form, full_size, timed):
    shapes, with_gradients = ROWWISE[table]
    function = ROWWISE_FORMS[table, form]
    g = torch.Generator().manual_seed(0)
    sizes = shapes if full_size else [tuple(max(1, n // 64) for n in shape) for shape in shapes]
    tensors = [torch.randn(shape, generator=g) / (shape[-1] ** 0.5 if k else 1) for k, shape in enumerate(sizes)]
    leaves = [t.requires_grad_(k < with_gradients) for k, t in enumerate(tensors)]
    y = function(*leaves)
    assert y.isfinite().all()
    grad = torch.randn_like(y)
    group, asked = f"{table}, forward + backward", leaves[:with_gradients]
    timed(lambda: torch.autograd.grad(function(*leaves), asked, grad), group, form, kind=kind_of(form))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "linear_cross_entropy": mk.linear_cross_entropy,
    "F.cross_entropy of the logits": lambda x, w, labels: F.cross_entropy(F.linear(x, w), labels),
}


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("classes", [32_128, 250_112])
def test_loss(classes, form, full_size, timed):
    rows, width, count = (512, 512, classes) if full_size else (6, 8, 1100)
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, width, generator=g).requires_grad_(), torch.randn(count, width, generator=g)
    labels = torch.randint(count, (rows,), generator=g)
    group = f"loss over a frozen head of {classes:,} classes, 512 rows, forward + backward"
    timed(lambda: torch.autograd.grad(LOSSES[form](x, weight, labels), x), group, form, kind=kind_of(form))
