"""Schemas and fakes of the ops of a frozen T5's step, which ops.py registers.

Attention ops take tensors as T5's projections lie in memory: query, key, value and the outputs are (b, tokens, h, d).
`seed` is an int64 tensor (1,). dropout_add_backward gives the gradient of x alone; the residual's is `grad` itself.
prefix_attention_backward gives no gradient of the bias, and linear_cross_entropy_backward none of the weight: the rules
(step_rules.py) take these from the plain forms.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import linear_cross_entropy_pieces
from .derivatives import requested

_ATTENTION = (
    "Tensor query, Tensor key, Tensor value, Tensor? prefix_key, Tensor? prefix_value, Tensor? rows, Tensor? bias, "
    "Tensor? key_mask, Tensor? seed, "
)
_ATTENTION_SETTINGS = "bool causal, float scale, float dropout"
SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "rms_norm_backward": "(Tensor grad, Tensor x, Tensor weight, float eps, int needs) -> Tensor[]",
    "dropout_add": "(Tensor x, Tensor? residual, Tensor seed, float p) -> Tensor",
    "dropout_add_backward": "(Tensor grad, Tensor seed, float p, int needs) -> Tensor[]",
    "relu_dropout": "(Tensor x, Tensor? seed, float p) -> Tensor[]",
    "relu_dropout_backward": "(Tensor grad, Tensor bits, float p, int needs) -> Tensor[]",
    "gated_gelu_dropout": "(Tensor gate, Tensor x, Tensor? seed, float p) -> Tensor",
    "gated_gelu_dropout_backward": (
        "(Tensor grad, Tensor gate, Tensor x, Tensor? seed, float p, int needs) -> Tensor[]"
    ),
    "prefix_attention": f"({_ATTENTION}{_ATTENTION_SETTINGS}) -> Tensor[]",
    "prefix_attention_backward": (
        f"(Tensor grad, {_ATTENTION}Tensor lse, {_ATTENTION_SETTINGS}, int needs) -> Tensor[]"
    ),
    "linear_cross_entropy": (
        "(Tensor x, Tensor weight, Tensor labels, float label_smoothing, int ignore_index) -> Tensor[]"
    ),
    "linear_cross_entropy_backward": (
        "(Tensor grad, Tensor x, Tensor weight, Tensor labels, Tensor grad_x, float label_smoothing, int ignore_index, "
        "int needs) -> Tensor[]"
    ),
}
# Outputs that are float32 for inputs of 16 bits, by their places.
WIDE_OUTPUTS = {"prefix_attention": (1,), "linear_cross_entropy": (0,)}


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def _fake_like_first(x, *args):
    return x.new_empty(x.shape)


def _fake_relu_dropout(x, seed, p):
    return [x.new_empty(x.shape), x.new_empty(*x.shape[:-1], (x.shape[-1] + 7) // 8, dtype=torch.uint8)]


def _fake_attention(query, *args):
    batch, length, heads, _ = query.shape
    return [query.new_empty(query.shape), query.new_empty(batch, heads, length, dtype=_wide_dtype(query))]


def _fake_linear_cross_entropy(x, weight, labels, label_smoothing, ignore_index):
    return [x.new_empty((), dtype=_wide_dtype(x)), x.new_empty(x.shape)]


def fake_gradients(inputs: Callable[..., Sequence[Tensor]]) -> Callable[..., list[Tensor]]:
    """Return the fake of a gradient op. `inputs` takes its arguments and returns tensors of the gradients' shapes."""
    return lambda *args: [t.new_empty(t.shape) for t in requested(inputs(*args), args[-1])]


FAKES: dict[str, Callable] = {
    "rms_norm": _fake_like_first,
    "rms_norm_backward": fake_gradients(lambda grad, x, weight, *args: [x, weight]),
    "dropout_add": _fake_like_first,
    "dropout_add_backward": fake_gradients(lambda grad, *args: [grad]),
    "relu_dropout": _fake_relu_dropout,
    "relu_dropout_backward": fake_gradients(lambda grad, *args: [grad]),
    "gated_gelu_dropout": _fake_like_first,
    "gated_gelu_dropout_backward": fake_gradients(lambda grad, gate, x, *args: [gate, x]),
    "prefix_attention": _fake_attention,
    "prefix_attention_backward": fake_gradients(lambda grad, *args: args[:5]),
    "linear_cross_entropy": _fake_linear_cross_entropy,
    "linear_cross_entropy_backward": fake_gradients(lambda grad, x, *args: [x]),
}


def _linear_cross_entropy_backward(grad, x, weight, labels, grad_x, label_smoothing, ignore_index, needs):
    return requested([(grad_x * grad).to(x.dtype)], needs)


# Implementations in plain PyTorch that serve every backend but the reference, in every dtype.
SHARED: dict[str, Callable] = {
    "linear_cross_entropy": linear_cross_entropy_pieces.forward,
    "linear_cross_entropy_backward": _linear_cross_entropy_backward,
}
