"""Count the bytes of a training step, on device "meta" or any other, without a profiler."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ACTIVATIONS, PREFIXES, GRADIENTS, WORKING = "activations", "prefixes", "gradients", "working memory"
_LOSSES = {f"mop_kernels::linear_cross_entropy_{backend}" for backend in ("reference", "cpu", "triton")}


class MemoryLedger(TorchDispatchMode):
    """Count the storages that live, by kind, while this mode is active.

    A storage is counted from the operation that makes it until it is freed. So a tensor and its views count once.
    torch.distributed._tools has a MemTracker, which refuses models with frozen parameters.

    Args:
        known: Tensors that are not counted, such as the weights.

    Attributes:
        live: kind -> bytes that live now.
        peak: kind -> bytes at the moment with the most bytes in all.
    """

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.live = dict.fromkeys((ACTIVATIONS, PREFIXES, GRADIENTS, WORKING), 0)
        self.peak = dict(self.live)
        self._kind = WORKING
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that no key is used twice
        # the number that identifies a storage, also without memory -> its kind, "" if it is not counted
        self._kinds = dict.fromkeys((storage._cdata for storage in self._known), "")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count the storages of its results."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype is torch.bool:
            return False  # transformers asks whether a batch has no padding
        result = func(*args, **kwargs or {})
        tree_map_only(Tensor, self._add, result)
        if func.name() in _LOSSES and args[0].is_meta:
            self._run_loss(*args)
        return result

    def _run_loss(self, x: Tensor, weight: Tensor, labels: Tensor, *settings: Any) -> None:
        """Count the pieces of the logits: on meta, the operation makes nothing but its results."""
        from mop_kernels.linear_cross_entropy_pieces import forward

        with self:
            forward(x, weight, labels, *settings)

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._kinds and storage.nbytes():
            self._kinds[key] = self._kind
            weakref.finalize(storage, self._remove, key, storage.nbytes()).atexit = False
            self.live[self._kind] += storage.nbytes()
            if sum(self.live.values()) > sum(self.peak.values()):
                self.peak = dict(self.live)
        return tensor

    def _remove(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size

    def _say(self, tensor: Tensor, kind: str) -> None:
        """Count the storage of a tensor as another kind from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if self._kinds.get(key) == WORKING:
            self.live[WORKING] -= storage.nbytes()
            self._kinds[key] = kind
            self.live[kind] += storage.nbytes()

    def make(self, kind: str) -> None:
        """Count what is made from now on as `kind`."""
        self._kind = kind

    def saving_activations(self) -> saved_tensors_hooks:
        """Return a context in which what autograd saves counts as activations."""

        def pack(tensor: Tensor) -> Tensor:
            self._say(tensor, ACTIVATIONS)
            return tensor

        return saved_tensors_hooks(pack, lambda tensor: tensor)

    def watch_gradient(self, parameter: Tensor) -> None:
        """Count the gradient of a parameter as a gradient."""

        def say(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._say(parameter.grad, GRADIENTS)

        parameter.register_post_accumulate_grad_hook(say)
