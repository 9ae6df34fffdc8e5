"""The op `mop_kernels::expert_rows`, which selects the rows of some experts and gives sparse gradients.

It is an op, because torch.compile cannot trace an autograd.Function whose backward builds a sparse tensor. Its
derivative is an autograd.Function, because torch.library.register_autograd drops forward-mode tangents silently.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .validation import dtype_of_call


class _ExpertRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, experts):
        ctx.size = tensor.shape
        ctx.save_for_backward(experts)
        with torch._C._AutoDispatchBelowAutograd():
            return expert_rows(tensor, experts)

    @staticmethod
    def backward(ctx, grad):
        """Return a sparse tensor (layers, experts, ...) that holds the selected rows only."""
        (experts,) = ctx.saved_tensors
        return _SparseRows.apply(grad, experts, ctx.size), None


class _SparseRows(torch.autograd.Function):
    """The rows (layers, k, ...) as a sparse tensor. The gradient of sparse_coo_tensor has no graph (torch 2.13)."""

    @staticmethod
    def forward(ctx, rows, experts, size):
        ctx.save_for_backward(experts)
        layers = torch.arange(size[0], device=experts.device).repeat_interleave(experts.shape[0])
        indices = torch.stack([layers, experts.repeat(size[0])])
        return torch.sparse_coo_tensor(indices, rows.flatten(0, 1), size, check_invariants=False)

    @staticmethod
    def backward(ctx, grad):
        (experts,) = ctx.saved_tensors
        return expert_rows(grad.to_dense() if grad.is_sparse else grad, experts), None, None


def _fake_expert_rows(tensor, experts):
    return tensor.new_empty(tensor.shape[0], experts.shape[0], *tensor.shape[2:])


ops.LIBRARY.define("expert_rows(Tensor tensor, Tensor experts) -> Tensor")
ops.LIBRARY.impl("expert_rows", lambda tensor, experts: tensor.index_select(1, experts), "CompositeExplicitAutograd")
ops.LIBRARY.impl("expert_rows", _ExpertRows.apply, "Autograd")
torch.library.register_fake("mop_kernels::expert_rows", _fake_expert_rows, lib=ops.LIBRARY)
expert_rows = torch.ops.mop_kernels.expert_rows.default


def select_rows(
    tensors: Sequence[Tensor | None], experts: Tensor, num_experts: int
) -> tuple[list[Tensor | None], Tensor | None]:
    """Replace every tensor that has an experts dim by its rows of `experts`, and cast all tensors for the call.

    Returns:
        The tensors, and the experts that the backend has to select from them. None: all experts.
    """
    empty = experts.shape[0] == 0

    def select(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if tensor.shape[1] == num_experts > 1:
            tensor = expert_rows(tensor, experts)
            if empty:  # add two rows that no id selects: backends take no empty dim, and share a single row
                tensor = torch.cat([tensor, tensor.new_zeros(tensor.shape[0], 2, *tensor.shape[2:])], 1)
        return tensor.to(dtype_of_call(tensor))

    return [select(t) for t in tensors], experts if empty or num_experts == 1 else None
