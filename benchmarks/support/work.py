"""The work that is compiled ahead of time, tuned and timed on a GPU, and the least time it can take there.

Each piece of work is one operation at one size. Its arguments are those of the raw ops (mop_kernels/ops.py) and are
made on torch's default device, so that `with torch.device("meta")` gives sizes alone: enough to compile from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.support.cases import bank_multiply_adds, lowrank_multiply_adds, prompt_multiply_adds
from mop_kernels import ops, testing
from mop_kernels.testing import BANKS, PROMPTS, SHAPES, Bank, PromptShape, Shape

FORWARD, BOTH = "forward", "forward + backward"


class Work(NamedTuple):
    """One operation at one size; `shape` is the Bank of a mop_ffn, the PromptShape of an attempt_mix."""

    op: str
    label: str
    shape: Shape | Bank | PromptShape

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """The differentiable inputs, in the op's order."""
        if self.op == "mop_ffn":
            return testing.mop_inputs(self.shape, dtype)
        if self.op == "attempt_mix":
            return testing.prompt_inputs(self.shape, dtype)[0]
        if self.op == "lowrank_phm_linear":
            return testing.lowrank_inputs(self.shape, dtype)
        tensors = testing.linear_inputs(self.shape, dtype)
        return tensors[1:3] if self.op == "phm_weight" else tensors

    def forward_arguments(self, tensors: list[Tensor]) -> tuple:
        if self.op == "attempt_mix":
            x, source, target, *factors = tensors
            options = testing.prompt_inputs(self.shape, x.dtype)[1]
            return x, options["mask"], source, target, options["task_ids"], *factors, options["temperature"]
        if self.op != "mop_ffn":
            return tuple(tensors)
        x, down, ups = testing.as_mop_arguments(tensors)
        return x, down, [t for up in ups for t in up], len(ups), "relu", None

    def backward_arguments(self, tensors: list[Tensor], grads: list[Tensor]) -> tuple:
        """All gradients asked for."""
        mask = (1 << len(tensors)) - 1
        if self.op == "mop_ffn":
            return grads, *self.forward_arguments(tensors), mask
        if self.op == "attempt_mix":  # the last two stand for what forward saved: any number, at any row
            return *grads, *self.forward_arguments(tensors)[2:], mask
        read = tensors if self.op == "phm_weight" else tensors[:-1]  # not the bias
        return grads[0], *read, mask

    def output_shapes(self) -> list[tuple[int, ...]]:
        s = self.shape
        if self.op == "mop_ffn":
            return [(s.layers, s.experts, s.up.rows, s.up.d_out)] * s.maps
        if self.op == "attempt_mix":
            return [(s.batch, s.rows + s.length, s.width), (s.batch, s.sources + 1), *[(s.batch, s.width)] * 2]
        return [(s.d_in if self.op == "phm_weight" else s.rows, s.d_out)]

    def multiply_adds(self) -> int:
        """Of the forward pass, in the cheapest form that is exact; of a full rule, those of a dense layer."""
        if self.op == "mop_ffn":
            return bank_multiply_adds(self.shape)
        if self.op == "attempt_mix":
            return prompt_multiply_adds(self.shape)
        if self.op == "lowrank_phm_linear":
            return lowrank_multiply_adds(self.shape)
        return (self.shape.terms if self.op == "phm_weight" else self.shape.rows) * self.shape.d_in * self.shape.d_out

    def least_work(self, dtype: torch.dtype, direction: str) -> tuple[int, int]:
        """(floating-point operations, bytes): forward reads the inputs and writes the outputs once; backward counts
        twice the operations, reads both again and writes the gradients of the inputs."""
        with torch.device("meta"):
            read = sum(t.nbytes for t in self.inputs(dtype))
            written = sum(torch.empty(shape, dtype=dtype).nbytes for shape in self.output_shapes())
        flops = 2 * self.multiply_adds()
        if direction == FORWARD:
            return flops, read + written
        return 3 * flops, 3 * read + 2 * written


BANK = Work("mop_ffn", "paper bank", BANKS["paper"])
LAYER = Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 16, rank 1", Shape(4096, 16, 16, 16, 256, 256, 1))
FULL = Work("phm_linear", "40 rows, 768 -> 128, terms 16", SHAPES["paper_down"])
WORK = [
    BANK,
    Work("mop_ffn", "T5-11B bank", Bank(24, 32, Shape(100, 16, 16, 16, 64, 8, 1), Shape(100, 8, 8, 8, 16, 2048, 1))),
    LAYER,
    Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 16, rank 4", LAYER.shape._replace(rank=4)),
    Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 4, rank 1", Shape(4096, 4, 4, 4, 1024, 1024, 1)),
    Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 4, rank 4", Shape(4096, 4, 4, 4, 1024, 1024, 4)),
    Work("lowrank_phm_linear", "512 rows, 1024 -> 1024, terms 4, rank 1", Shape(512, 4, 4, 4, 256, 256, 1)),
    FULL,
    Work("phm_linear", "40 rows, 128 -> 768, terms 8", SHAPES["paper_up"]),
    Work("phm_linear", "4096 rows, 768 -> 768, terms 4", Shape(4096, 4, 4, 4, 192, 192, 1)),
    Work("phm_weight", "768 -> 128, terms 16", SHAPES["paper_down"]),
    Work("phm_weight", "128 -> 768, terms 8", SHAPES["paper_up"]),
    Work("phm_weight", "4096 -> 4096, terms 4", Shape(1, 4, 4, 4, 1024, 1024, 1)),
    Work("attempt_mix", "32 x 256, d 768, 6 prompts of 100", PROMPTS["paper"]),
]


class Precision(NamedTuple):
    """A dtype, and for float32 whether torch allows TF32 in matrix products."""

    name: str
    dtype: torch.dtype
    tf32: bool = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """For torch's own products and for ours, which follow them."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


PRECISIONS = (
    Precision("float32", torch.float32),
    Precision("tf32", torch.float32, tf32=True),
    Precision("bfloat16", torch.bfloat16),
    Precision("float16", torch.float16),
)

# Rates of an H200: copy and bfloat16 as measured on one, float32 from the vendor's data sheet, TF32 half of bfloat16.
H200 = {
    "copy_gbps": 4300.0,
    "mm_gflops": {"float32": 60e3, "tf32": 395e3, "bfloat16": 790e3, "float16": 790e3},
}


def floors_us(work: Work, precision: Precision, direction: str, rates: dict = H200) -> dict[str, float]:
    """The least times of the operations and of the bytes, in microseconds, on a GPU of these rates."""
    flops, nbytes = work.least_work(precision.dtype, direction)
    return {
        "arithmetic": flops / rates["mm_gflops"][precision.name] / 1e3,
        "bytes": nbytes / rates["copy_gbps"] / 1e3,
    }


def run(
    work: Work, backend: str, tensors: list[Tensor], direction: str, grads: list[Tensor] | None = None
) -> list[Tensor]:
    """The raw ops of a backend, or Triton's functions themselves for tensors that only have sizes."""
    if tensors[0].device.type == "meta":
        from mop_kernels.triton_kernels import IMPLEMENTATIONS

        forward, backward = IMPLEMENTATIONS[work.op], IMPLEMENTATIONS[f"{work.op}_backward"]
    else:
        forward, backward = ops.get(work.op, backend), ops.get(f"{work.op}_backward", backend)
    outputs = forward(*work.forward_arguments(tensors))
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if direction == FORWARD:
        return outputs
    return backward(*work.backward_arguments(tensors, grads or [torch.ones_like(y) for y in outputs]))
