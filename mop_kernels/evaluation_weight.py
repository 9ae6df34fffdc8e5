"""PHMLinear's evaluation weight: the one thing that this package keeps between calls."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import backends
from .validation import dtype_of_call


class EvaluationWeight:
    """W (out, in) of some factors, built at the first call without gradients and kept until a factor changes.

    A change is other memory (`param.data = ...`, a new Parameter) or a higher version counter (any in-place operation
    that autograd can see). Copies and pickles of it are empty.
    """

    def __init__(self):
        self._kept: tuple | None = None  # (key, weight, factors); one attribute, so that threads see it whole

    def drop(self) -> None:
        self._kept = None

    def get(self, x: Tensor, factors: list[Tensor], in_features: int, build: Callable[[], Tensor]) -> Tensor | None:
        """The weight for F.linear(x, weight), by build() -> (in, out) where needed; None where factors must be applied.

        That is: with gradients on, under torch.compile and CUDA graph capture (a graph would go on reading memory that
        is dropped here), for factors without memory or version of their own (fake, inference and wrapped tensors), and
        for an x that does not fit, so that it meets the error messages of functional.py.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return None
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in factors):
            return None
        device, dtype = factors[0].device, dtype_of_call(factors[0])
        if not isinstance(x, Tensor) or x.shape[-1:] != (in_features,):
            return None
        if x.device != device or dtype_of_call(x) != dtype:
            return None
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        backend = backends.resolve(None, device, dtype)  # raises for a named one that cannot run here, W or no W
        key = (backend, dtype, *((t.data_ptr(), t._version, t.dtype, t.shape, t.stride()) for t in factors))
        kept = self._kept
        if kept is None or kept[0] != key:
            self._kept = kept = None  # the old W goes before the new one comes
            # aliases of the factors: while they live, no other tensor can come to lie at the addresses in the key
            self._kept = kept = (key, build().mT.contiguous(), [t.detach() for t in factors])
        return kept[1]

    def __reduce__(self):
        return EvaluationWeight, ()
