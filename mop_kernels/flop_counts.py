"""Give the FLOPs of the package's ops to `torch.utils.flop_counter.FlopCounterMode`: two per multiply-add.

The counts are formulas of the sizes (multiply_adds.py) and the same for every backend. The counter does not look inside
an op of this package, so nothing is counted twice. The counter copies its registry when it is constructed: import
mop_kernels before that.

torch.utils.flop_counter is slow to import (torch 2.13 imports triton there). So the formulas are not registered when
mop_kernels is imported, but as soon as somebody imports torch.utils.flop_counter.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import torch

from . import backends, multiply_adds, ops

_COUNTER = "torch.utils.flop_counter"


def _register(flop_counter: ModuleType) -> None:
    """Register the formula of every op that is defined in this process."""
    for name in ops.SCHEMAS:
        count = getattr(multiply_adds, name)
        defined = [b for b in backends.NAMES if ops.is_defined(name, b)]
        packets = [getattr(torch.ops.mop_kernels, f"{name}_{backend}") for backend in defined]

        def formula(*args, count: Callable[..., int] = count, out_val: object = None, **kwargs) -> int:
            return 2 * count(*args, **kwargs)

        flop_counter.register_flop_formula(packets, get_raw=True)(formula)


class _AfterCounterIsImported(importlib.abc.MetaPathFinder):
    """Leave the search for torch's FLOP counter to the other finders, and register the formulas after it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = None if spec is None else spec.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register(module)

            loader.exec_module = load_and_register  # type: ignore[method-assign]  # this loader alone, once
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _AfterCounterIsImported())
