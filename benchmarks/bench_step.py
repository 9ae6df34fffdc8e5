"""The operations of a frozen T5's training step beside PyTorch's forms: time, and memory for backward.

The shapes are those of T5-small with 8 dialogues of 256 tokens and 64 summary tokens, dropout 0.1, float32. PyTorch's
forms of attention join the prefix to keys and values and expand the masks, as a user without a kernel does.
benchmarks/train_step.py times whole steps.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mop_kernels as mk
from mop_kernels import testing

P = 0.1


class Attention(NamedTuple):
    """The sizes of one attention. real: share of the keys that are no padding."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int = 64
    prefix: int = 40
    causal: bool = False
    real: float = 1.0


ATTENTIONS = {
    "encoder, 256 queries, 256 keys": Attention(8, 8, 256, 256),
    "encoder, 256 queries, 256 keys, 63 % real": Attention(8, 8, 256, 256, real=0.63),
    "decoder, 64 queries, 64 keys, causal": Attention(8, 8, 64, 64, causal=True),
    "cross-attention, 64 queries, 256 keys": Attention(8, 8, 64, 256),
    "512 queries, 512 keys, causal": Attention(4, 8, 512, 512, causal=True),
}
SMALL_ATTENTION = Attention(2, 2, 5, 7, width=8, prefix=3)


def attention_tensors(sizes: Attention) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return [query, key, value, prefix_key, prefix_value, bias], rows, and key_mask. Layouts are those of T5."""
    g = torch.Generator().manual_seed(0)
    s = sizes

    def projected(tokens: int) -> Tensor:
        return torch.randn(s.batch, tokens, s.heads, s.width, generator=g).transpose(1, 2)

    query, key, value = (projected(tokens) for tokens in (s.queries, s.keys, s.keys))
    prefixes = [torch.randn(5, s.heads, s.prefix, s.width, generator=g) for _ in range(2)]
    bias = torch.randn(1, s.heads, s.queries, s.keys, generator=g)
    mask = torch.ones(s.batch, s.keys, dtype=torch.bool)
    for row, length in enumerate(torch.linspace(2 * s.real - 1, 1, s.batch).tolist()):
        mask[row, max(1, round(length * s.keys)) :] = False
    return [query / s.width**0.5, key, value, *prefixes, bias], torch.arange(s.batch) % 5, mask


def fused(sizes: Attention, tensors: list[Tensor], rows: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return our attention."""
    query, key, value, prefix_key, prefix_value, bias = tensors
    return mk.prefix_attention(
        query, key, value, prefix_key, prefix_value, rows, bias, mask, causal=sizes.causal, scale=1.0, dropout=p
    )


def joined(sizes: Attention, tensors: list[Tensor], rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the joined keys and values, and the whole additive mask."""
    _, key, value, prefix_key, prefix_value, bias = tensors
    allowed = mask[:, None, None, :]
    if sizes.causal:
        allowed = allowed & torch.ones(sizes.queries, sizes.keys, dtype=torch.bool).tril()
    added = F.pad(torch.where(allowed, bias, torch.finfo(bias.dtype).min), (sizes.prefix, 0))
    return torch.cat([prefix_key[rows], key], 2), torch.cat([prefix_value[rows], value], 2), added


def by_sdpa(sizes: Attention, tensors: list[Tensor], rows: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return torch's fused attention on joined keys and values."""
    key, value, added = joined(sizes, tensors, rows, mask)
    return F.scaled_dot_product_attention(tensors[0], key, value, added, dropout_p=p, scale=1.0)


def by_products(sizes: Attention, tensors: list[Tensor], rows: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return softmax and dropout between two batched products."""
    key, value, added = joined(sizes, tensors, rows, mask)
    return F.dropout((tensors[0] @ key.mT + added).softmax(-1), p) @ value


FORMS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "prefix_attention": ("ours", fused),
    "joined, scaled_dot_product_attention": ("form", by_sdpa),
    "joined, matmul, softmax, dropout": ("form", by_products),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name, form, full_size, timed):
    sizes = ATTENTIONS[name] if full_size else SMALL_ATTENTION._replace(causal=ATTENTIONS[name].causal)
    tensors, rows, mask = attention_tensors(sizes)
    kind, function = FORMS[form]
    exact = by_products(sizes, [t.double() for t in tensors], rows, mask, 0.0)
    assert testing.relative_error(function(sizes, tensors, rows, mask, 0.0), exact) < 1e-4
    leaves = [t.requires_grad_() for t in tensors[:5]]
    grad = torch.randn(sizes.batch, sizes.queries, sizes.heads, sizes.width).transpose(1, 2)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(sizes, [*leaves, tensors[5]], rows, mask, P), leaves, grad)

    timed(both, f"attention with 40 prefix rows, dropout 0.1, forward + backward: {name}", form, kind=kind)


def _network(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return F.linear(mk.relu_dropout(F.linear(x, w_in), P), w_out)


def _new_gelu(gate: Tensor) -> Tensor:
    return 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0))))


def _plain_network(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return F.linear(F.dropout(F.linear(x, w_in).relu(), P), w_out)


# table -> (sizes of the tensors, how many of them have gradients, forms by name)
ROWWISE: dict[str, tuple[list[tuple[int, ...]], int, dict[str, tuple[str, Callable[..., Tensor]]]]] = {
    "residual + dropout of 2048 x 512": (
        [(2048, 512), (2048, 512)],
        2,
        {
            "dropout_add": ("ours", lambda x, residual: mk.dropout_add(x, residual, P)),
            "residual + F.dropout(x)": ("form", lambda x, residual: residual + F.dropout(x, P)),
        },
    ),
    "RMS norm of 2048 x 512, frozen weight": (
        [(2048, 512), (512,)],
        1,
        {
            "rms_norm": ("ours", mk.rms_norm),
            "T5LayerNorm": ("form", lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
            "F.rms_norm": ("form", lambda x, w: F.rms_norm(x, w.shape, w, 1e-6)),
        },
    ),
    "ReLU + dropout of 2048 x 2048": (
        [(2048, 2048)],
        1,
        {
            "relu_dropout": ("ours", lambda x: mk.relu_dropout(x, P)),
            "F.dropout(x.relu())": ("form", lambda x: F.dropout(x.relu(), P)),
        },
    ),
    "gated GELU + dropout of 2048 x 1024": (
        [(2048, 1024), (2048, 1024)],
        2,
        {
            "gated_gelu_dropout": ("ours", lambda gate, x: mk.gated_gelu_dropout(gate, x, P)),
            "F.dropout(NewGELUActivation(gate) * x)": ("form", lambda gate, x: F.dropout(_new_gelu(gate) * x, P)),
            "F.dropout(F.gelu(gate) * x)": (
                "form",
                lambda gate, x: F.dropout(F.gelu(gate, approximate="tanh") * x, P),
            ),
        },
    ),
    "network 512 -> 2048 -> 512 on 2048 rows, frozen weights": (
        [(2048, 512), (2048, 512), (512, 2048)],
        1,
        {"relu_dropout inside": ("ours", _network), "PyTorch": ("form", _plain_network)},
    ),
}


@pytest.mark.parametrize(("table", "form"), [(table, form) for table, (*_, f) in ROWWISE.items() for form in f])
def test_rowwise(table, form, full_size, timed):
    shapes, with_gradients, forms = ROWWISE[table]
    g = torch.Generator().manual_seed(0)
    sizes = shapes if full_size else [tuple(max(1, n // 64) for n in shape) for shape in shapes]
    tensors = [torch.randn(shape, generator=g) / (shape[-1] ** 0.5 if k else 1) for k, shape in enumerate(sizes)]
    kind, function = forms[form]
    leaves = [t.requires_grad_(k < with_gradients) for k, t in enumerate(tensors)]
    y = function(*leaves)
    assert y.isfinite().all()
    grad = torch.randn_like(y)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves), leaves[:with_gradients], grad)

    timed(both, f"{table}, forward + backward", form, kind=kind)


def _ours(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return mk.linear_cross_entropy(x, weight, labels)


def _logits(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), labels)


LOSSES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "linear_cross_entropy": ("ours", _ours),
    "F.cross_entropy of the logits": ("form", _logits),
}


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("classes", [32_128, 250_112])
def test_loss(classes, form, full_size, timed):
    rows, width, count = (512, 512, classes) if full_size else (6, 8, 1100)
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, width, generator=g).requires_grad_(), torch.randn(count, width, generator=g)
    labels = torch.randint(count, (rows,), generator=g)
    kind, function = LOSSES[form]

    def both() -> Any:
        return torch.autograd.grad(function(x, weight, labels), x)

    timed(both, f"loss over a frozen head of {classes:,} classes, 512 rows, forward + backward", form, kind=kind)
