"""The MLP that generates the prefixes of one attention: `tanh(E W_down + b) W_up + b`.

Source: Li and Liang 2021 for the reparameterisation; HKUNLP/UnifiedSKG for T5 and the layout of the generated row.
"""

import torch
from torch import nn

from mop_t5.backbone.load import BackboneShape

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "identity": nn.Identity}


class MLPGenerator(nn.Module):
    """Prefix keys and values of all layers of one attention.

    embedding (prefix, d_model) -> down (d_mid) -> activation -> up (layers * 2 * heads * d_kv): layer-major, key before
    value, then head. Initialised as PyTorch does: embedding N(0, 1), linear layers uniform. own_rows=False: no
    embedding, forward is given the rows.
    """

    def __init__(
        self,
        shape: BackboneShape,
        layers: int,
        prefix_length: int,
        d_mid: int,
        activation: str,
        dropout: float,
        device=None,
        dtype=None,
        own_rows: bool = True,
    ):
        super().__init__()
        self.layers, self.heads, self.d_kv = layers, shape.num_heads, shape.d_kv
        embedding = torch.empty(prefix_length, shape.d_model, device=device, dtype=dtype) if own_rows else None
        self.register_parameter("embedding", None if embedding is None else nn.Parameter(embedding))
        self.down = nn.Linear(shape.d_model, d_mid, device=device, dtype=dtype)
        self.up = nn.Linear(d_mid, layers * 2 * shape.inner, device=device, dtype=dtype)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        if own_rows:
            nn.init.normal_(self.embedding)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows (prefix, d_model) -> (layers, 2, 1, heads, prefix, d_kv), keys before values."""
        rows = self.dropout(self.up(self.activation(self.down(rows))))
        rows = rows.view(-1, self.layers, 2, self.heads, self.d_kv)
        return rows.permute(1, 2, 3, 0, 4).unsqueeze(2).contiguous()

    def pairs(self) -> tuple:
        """One (keys, values) a layer, each (1, heads, prefix, d_kv), from the embedding."""
        # unbind, not indexing: one stack in backward instead of a zero-filled tensor a layer
        return tuple(pair.unbind(0) for pair in self(self.embedding).unbind(0))
