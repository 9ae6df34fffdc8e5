"""The PHM layer of adapters (Compacter), computed by its factors: y = x sum_i rule_i (x) W_i + b.

adapters keeps the rest: which parameters a layer shares with others, and where they are stored.
"""

import sys

from torch import Tensor

from ..validation import dtype_of_call
from .factors import Factor, factored_linear, has_kernels
from .runtime_class import Accelerated


class AdaptersPHM(Accelerated):
    """Mixed into the class of a PHM layer."""

    replaceable = ("forward",)

    # of the layer
    name: str
    position: str
    b: Tensor | None
    shared_W_phm: bool
    shared_phm_rule: bool
    factorized_phm_W: bool
    factorized_phm_rule: bool

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b (..., out) for x (..., in)."""
        rule = self._factor("phm_rule", self.shared_phm_rule, self.factorized_phm_rule)
        local = self._factor(
            f"W_{self.position}" if self.shared_W_phm else "W", self.shared_W_phm, self.factorized_phm_W
        )
        part = local[0] if isinstance(local, tuple) else local
        if dtype_of_call(x) != dtype_of_call(part) or not has_kernels(x):
            return super().forward(x)
        return factored_linear(x, rule, local, self.b)

    def _factor(self, name: str, shared: bool, factorized: bool) -> Factor:
        """Return a factor of the layer, or the one that the layers of its adapter share."""
        if shared:
            context = sys.modules[type(self).__module__].ForwardContext.get_context()
            source = context.shared_parameters[self.name]
        else:
            source = self._parameters
        return (source[f"{name}_left"], source[f"{name}_right"]) if factorized else source[name]
