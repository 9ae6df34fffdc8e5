"""The MLP that generates the prefixes of one attention: `tanh(E W_down + b) W_up + b`.

Source: Li and Liang 2021 for the reparameterisation; HKUNLP/UnifiedSKG for T5 and the layout of the generated row.
"""

from typing import Unpack

import torch
from torch import Tensor, nn

from mop_t5.attachment.additions import Prefix
from mop_t5.attachment.method import Where
from mop_t5.backbone.load import BackboneShape

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "identity": nn.Identity}


class MLPGenerator(nn.Module):
    """Prefix keys and values of all layers of one attention.

    embedding (prefix, d_model) -> down (d_mid) -> activation -> up (layers * 2 * heads * d_kv): layer-major, key before
    value, then head. Initialised as PyTorch does: embedding N(0, 1), linear layers uniform.

    Args:
        shape: The sizes of the backbone.
        layers: Number of layers.
        prefix_length: Rows of the embedding. None: there is no embedding, and the caller gives the rows.
        d_mid: Width of the hidden layer.
        activation: Name of the activation of the hidden layer.
        dropout: Probability, after the last layer.
        where: Device and dtype of the parameters.
    """

    def __init__(
        self,
        shape: BackboneShape,
        layers: int,
        prefix_length: int | None,
        d_mid: int,
        activation: str,
        dropout: float,
        **where: Unpack[Where],
    ):
        super().__init__()
        self.layers, self.heads, self.d_kv = layers, shape.num_heads, shape.d_kv
        self.embedding: nn.Parameter | None = None
        if prefix_length is not None:
            self.embedding = nn.Parameter(torch.empty(prefix_length, shape.d_model, **where))
        self.down = nn.Linear(shape.d_model, d_mid, **where)
        self.up = nn.Linear(d_mid, layers * 2 * shape.inner, **where)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        if self.embedding is not None:
            nn.init.normal_(self.embedding)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Return keys and values (layers, 2, 1, heads, prefix, d_kv).

        rows: (prefix, d_model), or None for the embedding.
        """
        rows = self.dropout(self.up(self.activation(self.down(self.embedding if rows is None else rows))))
        rows = rows.view(-1, self.layers, 2, self.heads, self.d_kv)
        return rows.permute(1, 2, 3, 0, 4).unsqueeze(2).contiguous()

    def pairs(self) -> tuple[Prefix, ...]:
        """Return one (keys, values) per layer, each (1, heads, prefix, d_kv), from the embedding."""
        # unbind, not indexing: one stack in backward instead of a zero-filled tensor per layer
        keys, values = self().unbind(1)
        return tuple(zip(keys.unbind(0), values.unbind(0), strict=True))
