"""The routers of the task-level mixture of experts: task vectors in, one row of logits per layer and task out.

There are ten routers, from the poster's code: a small MLP, or a recurrent net or a transformer that reads the layers of
the model as a sequence. In the "layer_specific" routers every layer has a map of its own in front. In the others all
layers see the same input and a learned position.
"""

from typing import Unpack

import torch
from torch import Tensor, nn

from mop_t5.attachment.method import Where
from mop_t5.checks import check_choice

_HEADS, _FEED_FORWARD, _DROPOUT = 4, 64, 0.1  # of the transformers
_RECURRENT = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
ROUTERS = tuple(
    f"{kind}{where}" for kind in ("linear", *_RECURRENT, "transformer") for where in ("", "_layer_specific")
)


def make_router(name: str, d_in: int, hidden: int, layers: int, experts: int, **where: Unpack[Where]) -> nn.Module:
    """Return a module from task vectors (tasks, d_in) to logits (layers, tasks, experts), initialised as PyTorch does.

    The transformers have dropout.

    Args:
        name: One of ROUTERS.
        d_in: Width of the task vectors.
        hidden: Width of the MLP or of each direction of the recurrent net; of "transformer_layer_specific" the width.
        layers: Number of layers.
        experts: Number of experts.
        where: Device and dtype of the parameters.

    Raises:
        ValueError: The name is unknown, or the heads of a transformer do not divide its width.
    """
    check_choice("router", name, ROUTERS)
    kind, specific = name.removesuffix("_layer_specific"), name.endswith("_layer_specific")
    if kind == "linear":
        return _MLP(specific, d_in, hidden, layers, experts, **where)
    return _Sequence(kind, specific, d_in, hidden, layers, experts, **where)


class _MLP(nn.Module):
    """An MLP whose output has all layers, or, if it is specific, one MLP per layer."""

    def __init__(self, specific: bool, d_in: int, hidden: int, layers: int, experts: int, **where: Unpack[Where]):
        super().__init__()
        self.layers = layers
        if specific:
            self.linear1: nn.Module = _LayerLinear(layers, d_in, hidden, **where)
            self.linear2: nn.Module = _LayerLinear(layers, hidden, experts, **where)
        else:
            self.linear1 = nn.Linear(d_in, hidden, **where)
            self.linear2 = nn.Linear(hidden, layers * experts, **where)

    def forward(self, tasks: Tensor) -> Tensor:
        out = self.linear2(nn.functional.gelu(self.linear1(tasks)))
        return out if out.dim() == 3 else out.unflatten(-1, (self.layers, -1)).transpose(0, 1)


class _LayerLinear(nn.Module):
    """One nn.Linear per layer, all in one product: (n, d_in) or (layers, n, d_in) -> (layers, n, d_out)."""

    def __init__(self, layers: int, d_in: int, d_out: int, **where: Unpack[Where]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, d_out, d_in, **where))
        self.bias = nn.Parameter(torch.empty(layers, d_out, **where))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(d_in**-0.5), d_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x.expand(len(self.bias), -1, -1), self.weight.mT)


class _Sequence(nn.Module):
    """The layers as a sequence that a recurrent net reads in both directions, or a transformer's layer."""

    def __init__(
        self, kind: str, specific: bool, d_in: int, hidden: int, layers: int, experts: int, **where: Unpack[Where]
    ):
        super().__init__()
        self.layers = layers
        width = hidden if specific else d_in
        self.layer_specific_proj = nn.Linear(d_in, layers * hidden, **where) if specific else None
        self.pos_embed = None if specific else nn.Embedding(layers, d_in, **where)
        if kind == "transformer":
            if width % _HEADS:
                raise ValueError(
                    f"{'hidden' if specific else 'the width of the task vectors'} must be a multiple of {_HEADS}, the "
                    f"heads of this router; got {width}. Change it or use another router."
                )
            self.mixer = nn.TransformerEncoderLayer(width, _HEADS, _FEED_FORWARD, _DROPOUT, **where)
        else:
            self.mixer = _RECURRENT[kind](width, hidden, bidirectional=True, **where)
            width = 2 * hidden
        self.proj = nn.Linear(width, experts, **where)

    def forward(self, tasks: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = tasks + self.pos_embed.weight[:, None]
        elif self.layer_specific_proj is not None:
            x = self.layer_specific_proj(tasks).unflatten(-1, (self.layers, -1)).transpose(0, 1)
        mixed = self.mixer(x)
        return self.proj(mixed[0] if isinstance(mixed, tuple) else mixed)
