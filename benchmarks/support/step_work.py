"""Works of the operations of a frozen T5's training step; all works that are compiled ahead of time; `run` for both.

They have no plain form on a GPU beside them yet, so nothing times them (`work.WORK` holds the timed works).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.support.work import FORWARD, WORK, Work, listed, present
from mop_kernels import ops, testing
from mop_kernels.testing import AttentionShape

P, EPS, SCALE = 0.1, 1e-6, 1.0  # of T5


class StepWork(NamedTuple):
    """One operation at one size, like `Work`.

    Attributes:
        op: Name of the public operation.
        label: The size in words.
        shape: An AttentionShape for prefix_attention, (rows, columns) for the other operations.
    """

    op: str
    label: str
    shape: AttentionShape | tuple[int, int]

    @property
    def name(self) -> str:
        """Return the operation and its size in words."""
        return f"{self.op}, {self.label}"

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Return the differentiable inputs, in the order of the raw operation."""
        if isinstance(self.shape, AttentionShape):
            return self._attention(dtype, seed)[0]
        generator = torch.Generator().manual_seed(seed)
        others = {"rms_norm": [self.shape[1:]], "relu_dropout": []}.get(self.op, [self.shape])
        return [testing.normal(generator, dtype, *shape) for shape in (self.shape, *others)]

    def forward_arguments(self, tensors: Sequence[Tensor]) -> tuple:
        """Return the arguments of the raw operation."""
        if self.op == "rms_norm":
            return *tensors, EPS
        seed = torch.zeros(1, dtype=torch.int64)
        if not isinstance(self.shape, AttentionShape):
            return *tensors, seed, P
        prefixes = tensors[3:] or (None, None)
        options = self._attention(tensors[0].dtype, 0)[1]
        return *tensors[:3], *prefixes, *options, seed, self.shape.causal, SCALE, P

    def backward_arguments(self, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple:
        """Return the arguments of the raw backward operation, which asks for all gradients.

        grads: Gradients of the outputs. They also stand for the outputs that forward saved.
        """
        arguments = self.forward_arguments(tensors)
        if self.op in ("rms_norm", "gated_gelu_dropout"):
            return grads[0], *arguments, 3
        if self.op == "dropout_add":
            return grads[0], *arguments[2:], 1
        if self.op == "relu_dropout":
            return *grads, P, 1
        return grads[0], *arguments[:9], grads[1], *arguments[9:], (1 << len(tensors)) - 1

    def _attention(self, dtype: torch.dtype, seed: int) -> tuple[list[Tensor], tuple]:
        """Return query, key and value in the layout of the raw operation with the prefixes; and rows, bias and mask."""
        assert isinstance(self.shape, AttentionShape)
        (*tensors, bias), options = testing.attention_inputs(self.shape, dtype, seed=seed)
        query, key, value, *prefixes = present(tensors)
        projected = [t.transpose(1, 2).contiguous() for t in (query, key, value)]
        return [*projected, *prefixes], (options["rows"], bias, options["key_mask"])


STEP_WORK = [
    StepWork("prefix_attention", "T5-small encoder", AttentionShape(8, 8, 256, 256, 64, 40, 5, False)),
    StepWork("prefix_attention", "T5-small decoder", AttentionShape(8, 8, 64, 64, 64, 40, 5, True)),
    StepWork("prefix_attention", "T5-11B encoder", AttentionShape(2, 128, 512, 512, 128, 40, 5, False)),
    StepWork("prefix_attention", "T5-small without prefixes", AttentionShape(8, 8, 256, 256, 64, 0, 0, False)),
    StepWork("rms_norm", "2048 rows of 512", (2048, 512)),
    StepWork("rms_norm", "1024 rows of 4096", (1024, 4096)),
    StepWork("dropout_add", "2048 rows of 512", (2048, 512)),
    StepWork("relu_dropout", "2048 rows of 2048", (2048, 2048)),
    StepWork("gated_gelu_dropout", "2048 rows of 1024", (2048, 1024)),
]
LAUNCHED: list[Work | StepWork] = [*WORK, *STEP_WORK]


def run(
    work: Work | StepWork,
    backend: str,
    tensors: Sequence[Tensor],
    direction: str,
    grads: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Call the raw operation of a backend. Tensors that only have sizes go directly to Triton's functions."""
    find: Callable[[str], Callable[..., Any]] = partial(ops.get, backend=backend)
    if tensors[0].device.type == "meta":
        from mop_kernels.triton_kernels import IMPLEMENTATIONS

        find = IMPLEMENTATIONS.__getitem__
    outputs = listed(find(work.op)(*work.forward_arguments(tensors)))
    if direction == FORWARD:
        return outputs
    grads = grads or [torch.ones_like(y) for y in outputs]
    return find(f"{work.op}_backward")(*work.backward_arguments(tensors, grads))
