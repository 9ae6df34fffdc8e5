"""X-MoE routing of prefix rows (Chi et al. 2022, as used in public code that is very probably the MOP authors' own).

Each layer has a gate. It projects a row of X' to a few dimensions and compares it with one unit vector per expert. The
two experts of a row are mixed by their renormalised probabilities. The rows of X' are routed once per batch, and no
expert has a capacity.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mop_t5.attachment.method import Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.methods.parts.precision import full_precision

_WIDTH = 4  # of the space of the centroids
_CENTROID_NORM = 1.5


class Top2Gate(nn.Module):
    """The gates of several layers on the same rows.

    logits = (rows W) . c / |c|, p = softmax over experts. In training the second expert is drawn from p without the
    first expert (Gumbel-max). In evaluation it is the second best.

    forward(rows (n, d_model)) returns the weights (layers, n, experts) and the balance loss. Each row has two weights
    that sum to one; the others are zero. The loss is experts^2 * mean over experts of (mean p * share of rows whose
    first expert it is), summed over layers.
    """

    def __init__(self, layers: int, experts: int, d_model: int, **where: Unpack[Where]):
        super().__init__()
        self.projection = nn.Parameter(torch.empty(layers, d_model, _WIDTH, **where))
        self.centroids = nn.Parameter(torch.empty(layers, experts, _WIDTH, **where))
        nn.init.uniform_(self.projection, -(d_model**-0.5), d_model**-0.5)  # as nn.Linear
        with torch.no_grad():
            for centroids in self.centroids:
                nn.init.orthogonal_(centroids, gain=0.32)
            self.centroids.copy_(_CENTROID_NORM * F.normalize(self.centroids, dim=-1))

    def probabilities(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and softmax, each (layers, n, experts)."""
        # The source rescales the centroids in place before each use. Here the values are rescaled and the gradient
        # bypasses the rescaling. The gradient is the same, and a forward pass has no side effect.
        rescaled = _CENTROID_NORM * F.normalize(self.centroids, dim=-1)
        centroids = F.normalize(self.centroids + (rescaled - self.centroids).detach(), dim=-1)
        with full_precision(rows):  # two experts may be close
            logits = rows @ self.projection @ centroids.mT
            return logits, logits.softmax(-1)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and the balance loss."""
        logits, probabilities = self.probabilities(rows)
        experts = torch.arange(logits.shape[-1], device=logits.device)
        first = logits.argmax(-1, keepdim=True) == experts
        if self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()  # Gumbel noise
        second = logits.masked_fill(first, -torch.inf).argmax(-1, keepdim=True) == experts
        weights = probabilities * (first | second)
        weights = weights / weights.sum(-1, keepdim=True)
        n = max(rows.shape[0], 1)  # a prefix may have no rows
        balance = len(experts) * (probabilities.sum(1) / n * (first.sum(1) / n)).sum()
        return weights, balance


class ResidualNorm(nn.Module):
    """LayerNorm over the head width of dropout(generated + X'), shared by keys, values and layers of an attention."""

    def __init__(self, shape: BackboneShape, dropout: float, **where: Unpack[Where]):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(shape.d_kv, **where)

    def forward(self, generated: Tensor, rows: Tensor) -> Tensor:
        """Normalise generated (..., heads, prefix, d_kv) plus rows (prefix, heads*d_kv)."""
        residual = rows.unflatten(-1, (-1, generated.shape[-1])).transpose(0, 1)
        return self.norm(self.dropout(generated + residual))
