"""The public operations of a frozen T5's training step: attention with prefixes, dropout, activations, norms, loss.

A frozen backbone needs no gradient of its weights, so far less must be saved for backward than PyTorch saves. All
operations are differentiable any number of times. They draw dropout masks by a counter-based generator and draw them
again in backward. The errors are those of functional.py.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import validation
from .operation import Operation, Prepared, run
from .step_validation import (
    check_attention,
    check_gated,
    check_linear_cross_entropy,
    check_not_distributed,
    check_probability,
    check_rms_norm,
    check_rows,
    promoted,
    seed_of,
)
from .validation import check_ids, check_int64, check_number, check_shape


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, backend: str | None = None) -> Tensor:
    """Compute y = x / sqrt(mean(x^2) + eps) * weight over the last dim: T5's LayerNorm.

    Sums are in float32 or better. Backward saves x and the weight, and computes the statistics again. A frozen weight
    costs no gradient. Under autocast the dtypes stay as they are.

    Args:
        x: (..., d).
        weight: (d,).
        eps: Added to the mean square.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        y (..., d).

    Raises:
        TypeError: An argument is no floating-point tensor, or eps is no number.
        ValueError: A shape, a device or eps does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    tensors = promoted(x, weight)
    return run(_RMS_NORM, backend, tensors, (), (eps,), cast=False)[0]


def dropout_add(
    x: Tensor, residual: Tensor | None, p: float, seed: int | Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Compute residual + dropout(x). Nothing but the seed is saved for backward.

    The generator gives 16 bits per element, so the probability is p rounded to a multiple of 2**-16. The mask of an
    element depends on the seed, its row (the flattened leading dims) and its column. Under autocast the dtypes stay as
    they are.

    Args:
        x: (..., d).
        residual: (..., d), or None for dropout(x) alone.
        p: Probability to drop an element, from 0 to below 1.
        seed: An integer or an int64 tensor (1,). None: drawn from torch's generator, so that torch.manual_seed repeats
            a run, and checkpointing draws the same mask again.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        (..., d).

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A shape, a device, p or the seed does not fit, x is a DTensor, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    check_probability("p", p)
    check_not_distributed("dropout_add", x, residual)
    x, residual = promoted(x, residual)
    drawn = seed_of(seed, p, x)
    if drawn is None and isinstance(x, Tensor):
        drawn = x.new_zeros(1, dtype=torch.int64)  # nothing is dropped, whatever the seed
    return run(_DROPOUT_ADD, backend, (x, residual), (drawn,), (p,), cast=False)[0]


def relu_dropout(x: Tensor, p: float = 0.0, seed: int | Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Compute dropout(relu(x)). One bit per element is saved for backward.

    Args:
        x: (..., d).
        p: Probability to drop an element, from 0 to below 1, as for dropout_add.
        seed: As for dropout_add.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        (..., d).

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: p or the seed does not fit, x is a scalar or a DTensor, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    check_probability("p", p)
    check_not_distributed("relu_dropout", x)
    return run(_RELU_DROPOUT, backend, (x,), (seed_of(seed, p, x),), (p,), cast=False)[0]


def gated_gelu_dropout(
    gate: Tensor, x: Tensor, p: float = 0.0, seed: int | Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Compute dropout(gelu_tanh(gate) * x): the activation of a gated network (T5 1.1, flan-T5, mT5).

    gelu_tanh(g) = g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2, which transformers calls "gelu_new". One pass
    computes the result. Backward saves gate, x and the seed, and computes the activation and the mask again. Under
    autocast the dtypes stay as they are.

    Args:
        gate: (..., d), before the activation.
        x: (..., d).
        p: Probability to drop an element, from 0 to below 1, as for dropout_add.
        seed: As for dropout_add.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        (..., d).

    Raises:
        TypeError: An argument has a wrong type, or the dtypes of gate and x differ.
        ValueError: A shape, a device, p or the seed does not fit, a tensor is a DTensor, or `backend` has an unknown
            name.
        RuntimeError: `backend` cannot run here.
    """
    check_probability("p", p)
    check_not_distributed("gated_gelu_dropout", gate, x)
    tensors = promoted(gate, x)
    return run(_GATED_GELU_DROPOUT, backend, tensors, (seed_of(seed, p, gate),), (p,), cast=False)[0]


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attend to a prefix and to tokens: softmax([Q P_K^T ; Q K^T + bias]) [P_V ; V] per head (MOP, Eq. 5).

    Prefixes are read by row and never copied. The bias and the mask are read as they are and never expanded. Nothing of
    the size of the scores is saved: backward computes the weights and draws the dropout mask again. Sums are in float32
    or better. A query that sees no column has output 0.

    Args:
        query: (batch, heads, q, d). T5's layout, a transposed (batch, q, heads, d), is read without a copy.
        key: (batch, heads, k, d), likewise.
        value: (batch, heads, k, d), likewise.
        prefix_key: (r, heads, p, d), or None. Prefix columns are visible to every query, and have bias 0.
        prefix_value: (r, heads, p, d), or None.
        rows: int64 (batch,), the prefix row of each example. None: the only row serves all.
        bias: (1, heads, q, k) or (heads, q, k), added to the scores of tokens. Its gradient takes the plain form, which
            builds the scores.
        key_mask: (batch, k), bool, True where a key counts. None: all do.
        causal: Query i sees the tokens up to i.
        scale: Factor on the scores. None: d**-0.5. T5 has scale 1.
        dropout: Probability to drop a weight, from 0 to below 1, as for dropout_add. The columns of a row are the
            prefix and then the tokens.
        seed: As for dropout_add.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        (batch, heads, q, d), a transposed (batch, q, heads, d).

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A shape, a device, a row, a probability or the seed does not fit, a tensor is a DTensor, or
            `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    check_probability("dropout", dropout)
    check_not_distributed("prefix_attention", query, key, value, prefix_key, prefix_value)
    if (prefix_key is None) != (prefix_value is None):
        raise ValueError("prefix_key and prefix_value must be given together; got one of them.")
    if bias is not None and bias.dim() == 4:
        if bias.shape[0] != 1:
            raise ValueError(f"bias must have shape (1, heads, q, k) or (heads, q, k); got {tuple(bias.shape)}.")
        bias = bias[0]
    tensors = (query, key, value, prefix_key, prefix_value, bias)
    drawn = seed_of(seed, dropout, query)
    out = run(_PREFIX_ATTENTION, backend, tensors, (rows, key_mask, drawn), (causal, scale, dropout))[0]
    return out.transpose(1, 2)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Compute the cross entropy of the logits x W^T, over pieces of the classes: the loss over a frozen head.

    The logits of all classes never exist together. The gradient of x is made in the forward pass, and nothing else is
    saved. On the CPU rows with `ignore_index` cost nothing. A gradient of the weight takes the plain form, which builds
    the logits. The loss is float32 or wider.

    Args:
        x: Hidden rows (..., width).
        weight: (classes, width).
        labels: int64 (...), in 0..classes-1 or `ignore_index`.
        label_smoothing: Share of the target that is spread over all classes, from 0 to 1.
        ignore_index: A label that does not count.
        reduction: "mean" over the labels that count (NaN if there are none, as F.cross_entropy gives), or "sum".
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A shape, a device, a label, label_smoothing or reduction does not fit, x is a DTensor, or `backend`
            has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    check_not_distributed("linear_cross_entropy", x, weight)
    validation.check_choice("reduction", reduction, ("mean", "sum"))
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1; got {label_smoothing}.")
    settings = (float(label_smoothing), int(ignore_index))
    loss = run(_LINEAR_CROSS_ENTROPY, backend, (x, weight), (labels,), settings)[0]
    if reduction == "sum":
        return loss
    count = (labels != ignore_index).sum()
    # without a label that counts: NaN by a constant, because a division by zero would make the gradients NaN as well
    return torch.where(count > 0, loss / count.clamp(min=1), math.nan)


_ALL = (rms_norm, dropout_add, relu_dropout, gated_gelu_dropout, prefix_attention, linear_cross_entropy)
STEP_OPERATIONS = {f.__name__: f for f in _ALL}


def _prepare_rms_norm(tensors: Sequence, others: Sequence, settings: tuple, multiply_adds: int) -> Prepared:
    (eps,) = settings
    check_number("eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative; got {eps}. T5's is 1e-6.")
    return tensors, (float(eps),), multiply_adds


def _prepare_dropout(tensors: Sequence, others: Sequence, settings: tuple, multiply_adds: int) -> Prepared:
    return (*tensors, *others), (float(settings[0]),), multiply_adds


def _prepare_attention(tensors: Sequence, others: Sequence, settings: tuple, multiply_adds: int) -> Prepared:
    """Check rows, mask and settings, and return T5's layout of the tensors."""
    (query, key, value, prefix_key, prefix_value, bias), (rows, key_mask, seed) = tensors, others
    causal, scale, dropout = settings
    batch = query.shape[0]
    if rows is not None:
        if prefix_key is None:
            raise ValueError("rows must be None without prefix_key and prefix_value; got a tensor.")
        check_int64("rows", rows, "(batch,)")
        check_shape("rows", rows, "(batch,)", (batch,))
        rows = rows.to(query.device)
        check_ids("rows", rows, prefix_key.shape[0], ", the rows of prefix_key")
    elif prefix_key is not None and prefix_key.shape[0] != 1:
        raise ValueError(f"rows must give the prefix row of each example: prefix_key has {prefix_key.shape[0]} rows.")
    if key_mask is not None:
        if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
            got = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
            raise TypeError(f"key_mask must be a bool tensor of shape (batch, k); got {got}. Use mask != 0.")
        check_shape("key_mask", key_mask, "(batch, k)", (batch, key.shape[2]))
        key_mask = key_mask.to(query.device)
    if scale is None:
        scale = query.shape[3] ** -0.5
    check_number("scale", scale)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    given = (query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed)
    return given, (bool(causal), float(scale), float(dropout)), multiply_adds


def _prepare_linear_cross_entropy(tensors: Sequence, others: Sequence, settings: tuple, multiply_adds: int) -> Prepared:
    (x, weight), (labels,) = tensors, others
    check_int64("labels", labels, "(...), the leading dims of x")
    check_shape("labels", labels, "the leading dims of x", tuple(x.shape[:-1]))
    labels = labels.to(x.device)
    if validation.readable_ids(labels) is not None:
        ignored = settings[1]
        meaning = f", the rows of weight, or be ignore_index, {ignored}"
        check_ids("labels", labels.where(labels != ignored, 0), len(weight), meaning)
    return (x.reshape(-1, x.shape[-1]), weight, labels.reshape(-1)), settings, multiply_adds


_RMS_NORM = Operation("rms_norm", ("x", "weight"), check_rms_norm, prepare=_prepare_rms_norm)
_DROPOUT_ADD = Operation(
    "dropout_add", ("x", "residual"), check_rows, prepare=_prepare_dropout, optional=("residual",), others=("seed",)
)
_RELU_DROPOUT = Operation("relu_dropout", ("x",), check_rows, prepare=_prepare_dropout, others=("seed",))
_GATED_GELU_DROPOUT = Operation(
    "gated_gelu_dropout", ("gate", "x"), check_gated, prepare=_prepare_dropout, others=("seed",)
)
_PREFIX_ATTENTION = Operation(
    "prefix_attention",
    ("query", "key", "value", "prefix_key", "prefix_value", "bias"),
    check_attention,
    prepare=_prepare_attention,
    optional=("prefix_key", "prefix_value", "bias"),
    others=("rows", "key_mask", "seed"),
)
_LINEAR_CROSS_ENTROPY = Operation(
    "linear_cross_entropy",
    ("x", "weight"),
    check_linear_cross_entropy,
    prepare=_prepare_linear_cross_entropy,
    others=("labels",),
)
