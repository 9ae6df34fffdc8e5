"""linear_cross_entropy over pieces of the classes, in plain PyTorch: for every device and dtype.

The logits of all classes never exist together. A running maximum and a running sum per row (the online softmax) make
the loss and the gradient of the rows in one pass over the weight, with two products per piece. Backward then only
multiplies the gradient of the rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_CLASSES = 1024  # per piece: the logits of 512 rows are 2 MB then, and the weight is read once


def forward(x: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int) -> Sequence[Tensor]:
    """Return the outputs of the op linear_cross_entropy (step_reference.linear_cross_entropy)."""
    counted = labels != ignore_index
    if not x.is_cpu:  # the host would have to wait for the number of rows
        return _of_rows(x, weight, labels.where(counted, 0), counted, label_smoothing)
    places = counted.nonzero()[:, 0]  # padding then costs no products
    if len(places) == len(labels):
        return _of_rows(x, weight, labels, None, label_smoothing)
    loss, of_places = _of_rows(x[places], weight, labels[places], None, label_smoothing)
    return [loss, x.new_zeros(x.shape).index_copy_(0, places, of_places)]


def _of_rows(x: Tensor, weight: Tensor, labels: Tensor, counted: Tensor | None, label_smoothing: float) -> list[Tensor]:
    classes = len(weight)
    wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    peak = x.new_full((len(x), 1), -torch.inf, dtype=wide)
    total, logits_sum = torch.zeros_like(peak), torch.zeros_like(peak)
    mixed = x.new_zeros(x.shape, dtype=wide)  # sum over classes of exp(logit - peak) W_class
    weight_sum = x.new_zeros(x.shape[1], dtype=wide)
    for first in range(0, classes, _CLASSES):
        piece = weight[first : first + _CLASSES]
        logits = (x @ piece.T).to(wide)
        if label_smoothing:
            logits_sum += logits.sum(1, keepdim=True)
            weight_sum += piece.sum(0, dtype=wide)
        higher = torch.maximum(peak, logits.amax(1, keepdim=True))
        rescale = (peak - higher).exp_()
        shares = logits.sub_(higher).exp_()
        total.mul_(rescale).add_(shares.sum(1, keepdim=True))
        mixed.mul_(rescale)
        if x.dtype == wide:
            mixed.addmm_(shares, piece)
        else:
            mixed.add_(shares.to(x.dtype) @ piece)
        peak = higher
    own = weight[labels].to(wide)
    own_logits = (x.to(wide) * own).sum(1)
    spread = label_smoothing / classes
    losses = (peak + total.log())[:, 0] - (1 - label_smoothing) * own_logits - spread * logits_sum[:, 0]
    gradient = mixed.div_(total).sub_(own, alpha=1 - label_smoothing).sub_(spread * weight_sum)
    if counted is not None:
        losses, gradient = losses.where(counted, 0), gradient.where(counted[:, None], 0)
    return [losses.sum(dtype=torch.float64).to(wide), gradient.to(x.dtype)]
