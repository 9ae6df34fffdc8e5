"""The operations of a training step of a frozen T5 in plain PyTorch: the definition that every backend must meet.

All operations draw dropout masks from one counter-based generator (`kept`): a mask is a function of the seed, the row
and the column. So backward draws the mask again instead of saving it, and all backends drop the same elements.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 2**16  # a probability is a multiple of 1/_STEPS: the generator gives 16 bits per element
_WORD = 2**32 - 1


def threshold(p: float) -> int:
    """Return the number of the 2**16 values of an element's random bits for which the element is dropped."""
    return round(p * _STEPS)


def factor(p: float) -> float:
    """Return 1 / (1 - p'), the factor of elements that are kept. p' = threshold(p) / 2**16. 0 if none is kept."""
    kept_values = _STEPS - threshold(p)
    return _STEPS / kept_values if kept_values else 0.0


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return z >> bits for int64 numbers that stand for unsigned ones."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def kept(seed: Tensor | None, shape: Sequence[int], p: float, device: torch.device) -> Tensor:
    """Return which elements dropout keeps: bool, of this shape. The last dim is the columns, all other dims are rows.

    Two 32-bit keys per row come from a 64-bit mixer of seed and row (the finaliser of SplitMix64). One 32-bit word
    serves two columns, 8 apart, so that the mask does not depend on the width of vector registers.
    """
    least = threshold(p)
    if least == 0 or seed is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    *leading, columns = shape
    row = torch.arange(1, math.prod(leading) + 1, dtype=torch.int64, device=device)
    z = seed.to(device) + row * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    a, b = (z & _WORD).unsqueeze(1), _shifted(z, 32).unsqueeze(1)
    column = torch.arange(columns, dtype=torch.int64, device=device)
    x = ((column // 16 * 8 + column % 8) * 0x9E3779B1 & _WORD) ^ a
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & _WORD
    x = x ^ (x >> 15)
    x = x + b & _WORD
    x = x * 0x846CA68B & _WORD
    x = x ^ (x >> 16)
    return (torch.where(column // 8 % 2 == 0, x & 0xFFFF, x >> 16) >= least).view(shape)


def _dropped(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """Return dropout of x, in float32 or better."""
    return torch.where(kept(seed, x.shape, p, x.device), _wide(x) * factor(p), 0)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last dim (T5LayerNorm; RMSNorm), in float32 or better."""
    wide = _wide(x)
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)


def dropout_add(x: Tensor, residual: Tensor | None, seed: Tensor, p: float) -> Tensor:
    """Return residual + dropout(x), or dropout(x) for a residual of None."""
    y = _dropped(x, seed, p)
    return (y if residual is None else residual + y).to(x.dtype)


def dropout_add_gradients(grad: Tensor, seed: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of residual."""
    return _dropped(grad, seed, p).to(grad.dtype), grad.view_as(grad)


_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


def relu_dropout(x: Tensor, seed: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
    """Return dropout(relu(x)), and one bit per element: whether the element is positive and kept.

    The bits are uint8 (..., ceil(d / 8)). Bit c % 8 of byte c // 8 belongs to column c.
    """
    keep = kept(seed, x.shape, p, x.device)
    passed = F.pad((keep & (x > 0)).to(torch.uint8), (0, -x.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bits = (passed * torch.tensor(_BITS, dtype=torch.uint8, device=x.device)).sum(-1, dtype=torch.uint8)
    return torch.where(keep, _wide(x).relu() * factor(p), 0).to(x.dtype), bits


def relu_dropout_gradient(grad: Tensor, bits: Tensor, p: float) -> Tensor:
    """Return the gradient of x."""
    passed = (bits.unsqueeze(-1) & torch.tensor(_BITS, dtype=torch.uint8, device=bits.device)).flatten(-2) != 0
    return torch.where(passed[..., : grad.shape[-1]], _wide(grad) * factor(p), 0).to(grad.dtype)


def gated_gelu_dropout(gate: Tensor, x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """Return dropout(gelu_tanh(gate) * x), in float32 or better.

    gelu_tanh(g) = g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2. What is dropped is 0 and has gradients 0, even
    where gate or x is NaN.
    """
    keep = kept(seed, x.shape, p, x.device)
    wide_gate, wide_x = (torch.where(keep, _wide(t), 0) for t in (gate, x))
    return (F.gelu(wide_gate, approximate="tanh") * wide_x * factor(p)).to(x.dtype)


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None,
    prefix_value: Tensor | None,
    rows: Tensor | None,
    bias: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of the op prefix_attention (MOP, Eq. 5): out (b, q, h, d) and lse (b, h, q).

    out = dropout(softmax([Q P_K^T ; Q K^T + bias])) [P_V ; V], over the columns that a query sees. lse is the logarithm
    of the sum of exp(scores) over these columns, in float32 or wider. A query that sees no column
    has out 0 and lse -inf.

    query (b, q, h, d); key and value (b, k, h, d); prefix_key and prefix_value (r, h, p, d); rows (b,); bias (h, q, k);
    key_mask (b, k), bool.
    """
    batch, length, *_ = query.shape
    narrow = query.dtype
    query, key, value = (_wide(t).transpose(1, 2) for t in (query, key, value))
    tokens = key.shape[2]
    scores = query @ key.transpose(2, 3) * scale
    if bias is not None:
        scores = scores + bias
    sees = scores.new_ones(length, tokens, dtype=torch.bool)
    sees = (sees.tril() if causal else sees).expand(batch, 1, length, tokens)
    if key_mask is not None:
        sees = sees & key_mask[:, None, None, :]
    if prefix_key is not None and prefix_value is not None:
        own_key, own_value = (_rows_of(_wide(t), rows, batch) for t in (prefix_key, prefix_value))
        scores = torch.cat([query @ own_key.transpose(2, 3) * scale, scores], 3)
        value = torch.cat([own_value, value], 2)
        sees = F.pad(sees, (own_key.shape[2], 0), value=True)
    scores = scores.masked_fill(~sees, -torch.inf)
    lse = F.pad(scores.detach(), (0, 1), value=-torch.inf).logsumexp(3)  # of no column, too
    some = sees.any(3, keepdim=True)
    weights = scores.where(some, 0).softmax(3).where(some, 0)
    keep = kept(seed, weights.shape, dropout, query.device)
    out = torch.where(keep, weights * factor(dropout), 0) @ value
    return out.transpose(1, 2).to(narrow), lse


def _rows_of(prefix: Tensor, rows: Tensor | None, batch: int) -> Tensor:
    """Return the prefix of every example. F.embedding sums the gradient of a row in the order of its examples."""
    if rows is None:
        return prefix.expand(batch, -1, -1, -1)
    return F.embedding(rows, prefix.flatten(1)).unflatten(1, prefix.shape[1:])


def linear_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross entropies of the rows x W^T, a scalar in float32 or better, and its gradient in x.

    x (n, width); weight (classes, width); labels (n,). A row whose label is `ignore_index` counts nothing.
    """
    logits = _wide(x @ weight.T)
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing, ignore_index=ignore_index)
    counted = (labels != ignore_index).unsqueeze(1)
    target = F.one_hot(labels.where(counted[:, 0], 0), len(weight)) * (1 - label_smoothing)
    of_logits = (logits.detach().softmax(1) - target - label_smoothing / len(weight)).where(counted, 0)
    return loss, (of_logits.to(x.dtype) @ weight.detach())
