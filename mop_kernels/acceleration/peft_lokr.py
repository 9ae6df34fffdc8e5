"""The linear layer of PEFT's LoKr, computed by its factors: dW = scaling * kron(w1, w2), y = base(x) + x dW^T.

PEFT keeps the rest: which adapters are active, merged or disabled, the base layer, module dropout, dtypes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..validation import dtype_of_call
from .factors import Factor, factored_linear, has_kernels
from .runtime_class import Accelerated

if TYPE_CHECKING:

    class _Layer(nn.Module):
        lokr_w1: nn.ParameterDict
        lokr_w1_a: nn.ParameterDict
        lokr_w1_b: nn.ParameterDict
        lokr_w2: nn.ParameterDict
        lokr_w2_a: nn.ParameterDict
        lokr_w2_b: nn.ParameterDict
        scaling: dict[str, float]
        rank_dropout: dict[str, float]
        rank_dropout_scale: dict[str, bool]

        def _get_delta_activations(self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
        def _cast_input_dtype(self, x: Tensor, dtype: torch.dtype) -> Tensor: ...

else:
    _Layer = object


class PeftLokrLinear(Accelerated, _Layer):
    """Mixed into the class of a LoKr layer."""

    replaceable = ("_get_delta_activations", "get_delta_weight")

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of one adapter."""
        name = adapter_name
        w1 = [self.lokr_w1[name]] if name in self.lokr_w1 else [self.lokr_w1_a[name], self.lokr_w1_b[name]]
        w2 = [self.lokr_w2[name]] if name in self.lokr_w2 else [self.lokr_w2_a[name], self.lokr_w2_b[name]]
        dtype = torch.promote_types(w1[0].dtype, w2[0].dtype)
        w1, w2 = [w.to(dtype) for w in w1], [w.to(dtype) for w in w2]
        # PEFT casts in autocast too, to float32 and back
        same = dtype_of_call(input) == dtype_of_call(w1[0])
        x = input if same else self._cast_input_dtype(input, dtype)
        if not has_kernels(x):
            return super()._get_delta_activations(name, input, *args, **kwargs)
        y = factored_linear(x, lokr_factor(w1, self.scaling[name]), lokr_factor(w2))
        if self.training and self.rank_dropout[name]:
            y = y * kept_outputs(y, self.rank_dropout[name], self.rank_dropout_scale[name])
        return y


def lokr_factor(parts: Sequence[Tensor], scale: float | Tensor = 1.0) -> Factor:
    """Return a factor of one term, with one dim more, from w (out, in), or from w = a b, a (out, rank), b (rank, in).

    LoKr computes y = x kron(w1, w2)^T, so its factors are transposed. `scale` multiplies the last part.
    """
    *rest, last = (part.t().unsqueeze(0) for part in parts)
    if isinstance(scale, Tensor) or scale != 1:
        last = last * scale
    return (last, rest[0]) if rest else last  # w^T = b^T a^T


def kept_outputs(y: Tensor, rank_dropout: float, rescale: bool) -> Tensor:
    """Return the factors (out,) of rank dropout, drawn as PEFT and LyCORIS draw them for the rows of the weight."""
    kept = (torch.rand(y.shape[-1]) > rank_dropout).float()
    if rescale:
        kept /= kept.mean()
    return kept.to(y.device, y.dtype)
