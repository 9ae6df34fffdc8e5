"""LyCORIS' LoKr, computed by its factors: dW = scale * multiplier * scalar * kron(w1, w2), y = base(x) + x dW^T.

LyCORIS has two forms of a forward pass. Bypass mode applies the factors one by one. Weight mode builds dW, adds it to
the base weight and subtracts the base weight again. Both multiply by the scale, alpha/rank, once. LyCORIS' merge
multiplies by it twice (`get_diff_weight`), and merging stays LyCORIS' own.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .factors import factored_linear, has_kernels
from .peft_lokr import kept_outputs, lokr_factor
from .runtime_class import Accelerated

if TYPE_CHECKING:

    class _Layer(nn.Module):
        lokr_w1: Tensor
        lokr_w1_a: Tensor
        lokr_w1_b: Tensor
        lokr_w2: Tensor
        lokr_w2_a: Tensor
        lokr_w2_b: Tensor
        use_w1: bool
        use_w2: bool
        scale: float
        scalar: Tensor
        multiplier: float
        rank_dropout: float
        rank_dropout_scale: bool
        drop: nn.Module

        def org_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
        def bypass_forward_diff(self, h: Tensor, scale: float = 1) -> Tensor: ...
        def _rebuild_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...

else:
    _Layer = object


class LycorisLokr(Accelerated, _Layer):
    """Mixed into the class of a LoKr module."""

    replaceable = ("forward", "get_weight", "bypass_forward", "bypass_forward_diff", "_rebuild_forward")
    replaced_by = ", as LyCORIS does where it parametrizes a weight"

    @classmethod
    def objection(cls, layer: Any) -> str | None:
        """Return why a module stays as it is, or None."""
        if layer.module_type != "linear":
            return f"it is a LoKr of a {layer.module_type}, not of a linear layer"
        if layer.wd:
            return "weight_decompose (DoRA) divides by a norm of the whole weight"
        return super().objection(layer)

    def bypass_forward_diff(self, h: Tensor, scale: float = 1) -> Tensor:
        """Return what bypass mode adds to the output of the base layer."""
        if not has_kernels(h):
            return super().bypass_forward_diff(h, scale)
        return self.drop(self._applied(h, scale))

    def _rebuild_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of weight mode."""
        if not has_kernels(x):
            return super()._rebuild_forward(x, *args, **kwargs)
        base = self.org_forward(x, *args, **kwargs)
        y = self._applied(x, self.multiplier)
        if self.training and self.rank_dropout:
            y = y * kept_outputs(y, self.rank_dropout, self.rank_dropout_scale)
        return base + y

    def _applied(self, x: Tensor, scale: float) -> Tensor:
        """Return scale * x dW^T for dW without its multiplier."""
        w1 = [self.lokr_w1] if self.use_w1 else [self.lokr_w1_a, self.lokr_w1_b]
        w2 = [self.lokr_w2] if self.use_w2 else [self.lokr_w2_a, self.lokr_w2_b]
        w1, w2 = ([w.to(x.device, x.dtype) for w in parts] for parts in (w1, w2))
        scalar = self.scalar.to(x.device) * (self.scale * scale)
        return factored_linear(x, lokr_factor(w1, scalar), lokr_factor(w2))
