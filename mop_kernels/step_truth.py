"""The truth of the operations of step.py: their definitions, one element, row or head at a time (see truth.py)."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import step, testing
from .testing import AttentionShape
from .truth import Case

SEED, P = 1234567, 0.3
_MASK = 2**64 - 1


def drops(seed: int, row: int, column: int, p: float) -> bool:
    """Tell whether dropout drops an element, in Python's integers."""
    z = (seed + (row + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    x = (column // 16 * 8 + column % 8) * 0x9E3779B1 & 0xFFFFFFFF
    x ^= z & 0xFFFFFFFF
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = ((x ^ x >> 15) + (z >> 32)) * 0x846CA68B & 0xFFFFFFFF
    x ^= x >> 16
    return (x & 0xFFFF if column // 8 % 2 == 0 else x >> 16) < round(p * 65536)


def factors(shape: Sequence[int], seed: int, p: float, device: torch.device) -> Tensor:
    """Return the factor of every element under dropout: 0 or 1 / (1 - p'), float64."""
    columns, rows = shape[-1], torch.Size(shape[:-1]).numel()
    kept = 65536 / max(65536 - round(p * 65536), 1)
    values = [[0.0 if drops(seed, row, c, p) else kept for c in range(columns)] for row in range(rows)]
    return torch.tensor(values, dtype=torch.float64, device=device).reshape(tuple(shape))


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6)


def _dropout_add(x: Tensor, residual: Tensor | None = None) -> Tensor:
    y = x * factors(x.shape, SEED, P, x.device)
    return y if residual is None else residual + y


def _relu_dropout(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0) * factors(x.shape, SEED, P, x.device)


def _gated_gelu_dropout(gate: Tensor, x: Tensor) -> Tensor:
    inner = (gate + 0.044715 * gate**3) * math.sqrt(2 / math.pi)
    return gate * (1 + torch.tanh(inner)) / 2 * x * factors(x.shape, SEED, P, x.device)


def _attention_by_head(
    query, key, value, prefix_key=None, prefix_value=None, bias=None, *, rows, key_mask, causal, dropout
) -> Tensor:
    """Return prefix_attention, for one query of one head of one example at a time."""
    batch, heads, queries, width = query.shape
    prefix = 0 if prefix_key is None else prefix_key.shape[2]
    keep = factors((batch, heads, queries, prefix + key.shape[2]), SEED, dropout, query.device)
    found = []
    for b in range(batch):
        row = 0 if rows is None else int(rows[b])
        for h in range(heads):
            keys = key[b, h] if prefix_key is None else torch.cat([prefix_key[row, h], key[b, h]])
            values = value[b, h] if prefix_value is None else torch.cat([prefix_value[row, h], value[b, h]])
            for i in range(queries):
                seen = [j for j in range(key.shape[2]) if bool(key_mask[b, j]) and (not causal or j <= i)]
                columns = [*range(prefix), *(prefix + j for j in seen)]
                scores = keys[columns] @ query[b, h, i] / width**0.5
                if bias is not None:
                    scores = scores + torch.cat([scores.new_zeros(prefix), bias[h, i, seen]])
                weights = torch.exp(scores) / torch.exp(scores).sum() * keep[b, h, i, columns]
                found.append(weights @ values[columns])
    return torch.stack(found).reshape(batch, heads, queries, width)


def _linear_cross_entropy(x: Tensor, weight: Tensor, *, labels: Tensor, smoothing: float) -> Tensor:
    losses = []
    for row, label in zip(x, labels.tolist()):
        if label != -100:
            logs = weight @ row - torch.log(torch.exp(weight @ row).sum())
            losses.append(-(1 - smoothing) * logs[label] - smoothing * logs.mean())
    return torch.stack(losses).sum() / len(losses)


def attention_case(shape: AttentionShape, dropout: float = P, *, bias: bool = True) -> Case:
    """Return prefix_attention with inputs of this shape. Absent prefixes and bias are left out of the tensors."""
    tensors, options = testing.attention_inputs(shape, torch.float64, bias=bias)
    names = ("query", "key", "value", "prefix_key", "prefix_value", "bias")
    present = [name for name, t in zip(names, tensors) if t is not None]

    def arguments(given: Sequence[Tensor]) -> dict:
        placed = {name: None if t is None else t.to(given[0].device) for name, t in options.items()}
        return dict(zip(present, given)) | placed | {"causal": shape.causal, "dropout": dropout}

    def function(*given: Tensor, backend: str | None = None):
        return step.prefix_attention(**arguments(given), seed=SEED, backend=backend)

    def truth(*given: Tensor):
        return _attention_by_head(**arguments(given))

    def inputs(dtype: torch.dtype):
        return [t for t in testing.attention_inputs(shape, dtype, bias=bias)[0] if t is not None]

    return Case(function, truth, inputs)


def _drawn(*shapes: tuple[int, ...]) -> Callable[[torch.dtype], list[Tensor]]:
    """Return a function that draws tensors of these shapes in a dtype."""

    def inputs(dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        return [testing.normal(generator, dtype, *shape) for shape in shapes]

    return inputs


def loss_case(rows: int, width: int, classes: int, smoothing: float = 0.0) -> Case:
    """Return linear_cross_entropy on this many rows. Every third row does not count."""
    labels = testing.integers(torch.Generator().manual_seed(5), classes, torch.int64, rows)
    labels[::3] = -100

    def function(x: Tensor, weight: Tensor, **kwargs):
        return step.linear_cross_entropy(x, weight, labels.to(x.device), label_smoothing=smoothing, **kwargs)

    truth = functools.partial(_linear_cross_entropy, labels=labels, smoothing=smoothing)
    return Case(function, truth, _drawn((rows, width), (classes, width)))


def cases() -> dict[str, dict[str, Case]]:
    """Return small cases of each operation by label, for check.py and the tests."""
    shape, odd = (2, 3, 19), (5, 37)
    add, relu, gated = (
        functools.partial(operation, p=P, seed=SEED)
        for operation in (step.dropout_add, step.relu_dropout, step.gated_gelu_dropout)
    )
    attentions = {name: attention_case(s) for name, s in testing.ATTENTIONS.items()}
    return {
        "rms_norm": {str(s): Case(step.rms_norm, _rms_norm, _drawn(s, s[-1:])) for s in (shape, odd)},
        "dropout_add": {
            "residual": Case(add, _dropout_add, _drawn(shape, shape)),
            "alone": Case(functools.partial(add, residual=None), _dropout_add, _drawn(odd)),
        },
        "relu_dropout": {str(s): Case(relu, _relu_dropout, _drawn(s)) for s in (shape, odd)},
        "gated_gelu_dropout": {str(s): Case(gated, _gated_gelu_dropout, _drawn(s, s)) for s in (shape, odd)},
        "prefix_attention": attentions
        | {"without dropout": attention_case(testing.ATTENTIONS["odd"], 0.0, bias=False)},
        "linear_cross_entropy": {
            "plain": loss_case(7, 5, 11),
            "two pieces, smoothed": loss_case(4, 6, 1030, smoothing=0.1),
        },
    }
