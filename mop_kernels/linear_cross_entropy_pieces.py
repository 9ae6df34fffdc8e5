"""Compute linear_cross_entropy over pieces of classes, on any device: two products per piece, and no second pass.

The logits of one piece at a time exist. A running maximum m of each row rescales what earlier pieces have left:

    L = X W_c^T;  m' = max(m, max L);  f = exp(m - m');  E = exp(L - m');  s = s f + sum E;  A = A f + E W_c

At the end, with label smoothing e over V classes, loss = sum of (m + log s - (1 - e) l_label - (e / V) sum_c l_c) and
grad_x = A / s - (1 - e) W_label - (e / V) sum_c W_c. The row of the label is subtracted last: its probability is near
one in a trained model, and a difference inside every piece would round it away.

Besides its results, a call holds one piece of logits, and afterwards the rows W_label. Its memory does not grow with
the number of classes.
"""

import torch
from torch import Tensor

# On a CPU, the logits of a piece (2 MB for 512 rows of float32) and its rows of W stay in the caches. On a GPU a piece
# is larger: it must be worth ten launches.
_CLASSES_ON_CPU = 1024
_LOGITS_ON_GPU = 2**24


def forward(x: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int) -> list[Tensor]:
    """Return the outputs of the op linear_cross_entropy (step_reference.linear_cross_entropy).

    On a CPU the rows with the label `ignore_index` leave before the products, so padding costs nothing. On a GPU they
    stay, because the host would have to wait for their number. Their results are then set to zero.

    Args:
        x: (n, width).
        weight: (classes, width), of the dtype of x.
        labels: (n,), int64.
        label_smoothing: Share of the uniform distribution in the targets, 0 to 1.
        ignore_index: Label of the rows that count nothing.

    Returns:
        [loss (), gradient in x (n, width)]. The loss is float32, or float64 for float64 tensors.
    """
    counted = labels != ignore_index
    if x.is_cpu:
        places = counted.nonzero()[:, 0]
        if len(places) < len(labels):
            losses, of_places = _of_rows(x[places], weight, labels[places], label_smoothing)
            gradient = x.new_zeros(x.shape).index_copy_(0, places, of_places.to(x.dtype))
        else:
            losses, gradient = _of_rows(x, weight, labels, label_smoothing)
    else:
        losses, gradient = _of_rows(x, weight, labels.where(counted, 0), label_smoothing)
        losses, gradient = losses.where(counted, 0), gradient.where(counted.unsqueeze(1), 0)
    return [losses.sum(dtype=torch.float64).to(losses.dtype), gradient.to(x.dtype)]


def _of_rows(x: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the loss of every row (n,) and the gradient of their sum in x (n, width), both float32 or float64.

    Products take the dtype of the tensors on a GPU. On a CPU, 16-bit tensors are cast to float32, one piece of
    `weight` at a time.
    """
    rows, classes = x.shape[0], weight.shape[0]
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    factor_dtype = sums if x.is_cpu else x.dtype
    factor = x.to(factor_dtype)
    most = _CLASSES_ON_CPU if x.is_cpu else max(_CLASSES_ON_CPU, _LOGITS_ON_GPU // max(rows, 1))
    buffer = x.new_empty(rows * min(most, classes), dtype=sums)
    grad = x.new_zeros(x.shape, dtype=sums)
    largest = x.new_full((rows,), torch.finfo(sums).min, dtype=sums)
    total, own = torch.zeros_like(largest), torch.zeros_like(largest)
    for first in range(0, classes, most):
        part = weight[first : first + most].to(factor_dtype)
        size = part.shape[0]
        logits = buffer[: rows * size].view(rows, size)
        _product(factor, part.mT, logits)
        column = labels - first
        is_here = (column >= 0) & (column < size)
        found = logits.gather(1, column.clamp(0, size - 1).unsqueeze(1)).squeeze(1)
        own = torch.where(is_here, found, own)

        grad.mul_(_softmax_piece(logits, largest, total).unsqueeze(1))
        _add_product(grad, logits, part)
        del part  # a cast piece leaves before the next comes
    del buffer, logits  # their memory serves W_label

    losses = (largest - own).add_(total.log())
    grad.div_(total.unsqueeze(1)).sub_(weight.index_select(0, labels), alpha=1 - label_smoothing)
    if label_smoothing > 0:
        mean = weight.sum(0, dtype=sums).div_(classes)
        losses.add_(own - x.to(sums) @ mean, alpha=label_smoothing)
        grad.sub_(mean, alpha=label_smoothing)
    return losses, grad


def _softmax_piece(logits: Tensor, largest: Tensor, total: Tensor) -> Tensor:
    """Make a step of the online softmax, in place. Return the factor of what was summed before.

    logits become exp(logits - largest), after `largest` has risen, and their sums are added to `total`.
    """
    if logits.is_cpu and hasattr(torch.ops.mop_kernels, "softmax_piece"):  # the compiled module: two passes, not five
        return torch.ops.mop_kernels.softmax_piece(logits, largest, total)
    previous = largest.clone()
    torch.maximum(largest, logits.amax(1), out=largest)
    scale = (previous - largest).exp_()
    logits.sub_(largest.unsqueeze(1)).exp_()
    total.mul_(scale).add_(logits.sum(1))
    return scale


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b to `out`. 16-bit factors are multiplied as they are, and summed in float32."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `to`. For a 16-bit b, a is rounded to its dtype, and the product is summed in float32."""
    if b.dtype == to.dtype:
        to.addmm_(a, b)
    else:
        to.add_(torch.mm(a.to(b.dtype), b, out_dtype=to.dtype))
