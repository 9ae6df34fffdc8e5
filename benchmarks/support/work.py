"""Works: an operation at one size, its inputs, and the least work that it needs.

A work is compiled ahead of time, tuned and timed. Its inputs are made on torch's default device. Under
`with torch.device("meta")` the inputs have sizes only, which is enough for a compilation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import e
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mop_kernels as mk
from mop_kernels import multiply_adds, ops, reference, testing
from mop_kernels.testing import BANKS, PROMPTS, SHAPES, AttentionShape, Bank, PromptShape, Shape
from mop_kernels.truth import PRODUCTS

FORWARD, BOTH = DIRECTIONS = ("forward", "forward + backward")
# arguments of the operations of a T5's step, by their names in the schemas
OF_T5 = {"eps": 1e-6, "p": 0.1, "dropout": 0.1, "scale": 1.0, "prefix_key": None, "prefix_value": None}


class Precision(NamedTuple):
    """A dtype, and for float32 whether torch allows TF32 in matrix products."""

    name: str
    dtype: torch.dtype
    tf32: bool = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Set whether torch's products use TF32. The kernels follow this setting of torch."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    @property
    def eps(self) -> float:
        """Return the relative size of one rounding."""
        return 2.0**-10 if self.tf32 else torch.finfo(self.dtype).eps


PRECISIONS = FLOAT32, TF32, BFLOAT16, FLOAT16 = (
    Precision("float32", torch.float32),
    Precision("tf32", torch.float32, tf32=True),
    Precision("bfloat16", torch.bfloat16),
    Precision("float16", torch.float16),
)


class Work(NamedTuple):
    """One operation at one size.

    Attributes:
        op: Name of the public operation.
        label: The size in words.
        shape: A Bank for mop_ffn, a PromptShape for attempt_mix, a Shape for phm_weight and the linear operations. For
            the operations of a frozen T5's step: an AttentionShape for prefix_attention, or (rows, columns).
        pairs: Number of weights that one call of phm_weight makes. 0: one weight, without group dims.
    """

    op: str
    label: str
    shape: Shape | Bank | PromptShape | AttentionShape | tuple[int, int]
    pairs: int = 0

    @property
    def name(self) -> str:
        """Return the operation and its size in words."""
        return f"{self.op}, {self.label}"

    def small(self) -> "Work":
        """Return the same operation at a small size, for a run that only shows that everything works."""
        if isinstance(self.shape, Bank):
            return self._replace(shape=BANKS["small"])
        if isinstance(self.shape, PromptShape):
            return self._replace(shape=PROMPTS["odd"])
        assert isinstance(self.shape, Shape)
        return self._replace(shape=Shape(8, min(4, self.shape.terms), 4, 4, 4, 4, 1), pairs=min(self.pairs, 2))

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Return the differentiable inputs, in the order of the raw operation."""
        shape = self.shape
        if self.pairs:
            one = self._replace(pairs=0)
            return stacked([one.inputs(dtype, seed + k) for k in range(self.pairs)])
        if isinstance(shape, Bank):
            return present(testing.mop_inputs(shape, dtype, seed=seed))
        if isinstance(shape, PromptShape):
            return testing.prompt_inputs(shape, dtype, seed=seed)[0]
        if isinstance(shape, Shape):
            return present(PRODUCTS[self.op][2](shape, dtype, seed=seed))
        if isinstance(shape, AttentionShape):
            return attention_inputs(shape, dtype, seed)[0]
        generator = torch.Generator().manual_seed(seed)
        others = {"rms_norm": [shape[1:]], "relu_dropout": []}.get(self.op, [shape])
        return [testing.normal(generator, dtype, *sizes) for sizes in (shape, *others)]

    def output_shapes(self) -> list[torch.Size]:
        """Return the shapes of the outputs of the raw operation (mop_kernels/ops.py)."""
        with torch.device("meta"):
            arguments = self.forward_arguments(self.inputs(torch.float32))
        return [y.shape for y in listed(ops.get(self.op, "reference")(*arguments))]

    def forward_arguments(self, tensors: Sequence[Tensor]) -> tuple:
        """Return the arguments of the raw operation."""
        if self.op == "mop_ffn":
            x, down, ups = testing.as_mop_arguments(tensors)
            return x, down, [t for up in ups for t in up], len(ups), "relu", None
        if isinstance(self.shape, (Shape, PromptShape)):
            return public_arguments(self.op, tensors)
        names = argument_names(self.op)
        given = OF_T5 | {"seed": torch.zeros(1, dtype=torch.int64)} | dict(zip(names, tensors))
        if isinstance(self.shape, AttentionShape):
            given |= attention_inputs(self.shape, tensors[0].dtype)[1]
        return tuple(given[name] for name in names)

    def backward_arguments(self, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple:
        """Return the arguments of the raw backward operation, which asks for all gradients.

        They are arguments of the forward operation, by name. `grads`, one tensor per output, stands for the others: the
        gradients of outputs, and outputs that forward saved.
        """
        given = dict(zip(argument_names(self.op), self.forward_arguments(tensors)))
        given |= {"grads": grads, "needs": (1 << len(tensors)) - 1}
        of_outputs = iter(grads)
        names = argument_names(f"{self.op}_backward")
        return tuple(given[name] if name in given else next(of_outputs) for name in names)

    def least_work(self, dtype: torch.dtype, direction: str) -> tuple[int, int]:
        """Return the least floating-point operations and bytes of a call of the raw operation."""
        with torch.device("meta"):
            outputs = [torch.empty(shape, dtype=dtype) for shape in self.output_shapes()]
            return least_work(self.op, self.inputs(dtype), outputs, direction)


BANK = Work("mop_ffn", "paper bank", BANKS["paper"])
LAYER = Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 16, rank 1", Shape(4096, 16, 16, 16, 256, 256, 1))
WIDE_LAYER = Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 4, rank 1", Shape(4096, 4, 4, 4, 1024, 1024, 1))
SMALLER_LAYER = Work("lowrank_phm_linear", "512 rows, 1024 -> 1024, terms 4, rank 1", Shape(512, 4, 4, 4, 256, 256, 1))
FULL_DOWN = Work("phm_linear", "40 rows, 768 -> 128, terms 16", SHAPES["paper_down"])
FULL_UP = Work("phm_linear", "40 rows, 128 -> 768, terms 8", SHAPES["paper_up"])
ONE_TERM = Work("phm_linear", "4096 rows, 1024 -> 1024, one term", Shape(4096, 1, 32, 32, 32, 32, 1))
PROMPT = Work("attempt_mix", "32 x 256, d 768, 6 prompts of 100", PROMPTS["paper"])
WORK = [
    BANK,
    Work("mop_ffn", "T5-11B bank", Bank(24, 32, Shape(100, 16, 16, 16, 64, 8, 1), Shape(100, 8, 8, 8, 16, 2048, 1))),
    LAYER,
    Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 16, rank 4", Shape(4096, 16, 16, 16, 256, 256, 4)),
    WIDE_LAYER,
    Work("lowrank_phm_linear", "4096 rows, 4096 -> 4096, terms 4, rank 4", Shape(4096, 4, 4, 4, 1024, 1024, 4)),
    SMALLER_LAYER,
    FULL_DOWN,
    FULL_UP,
    Work("phm_linear", "4096 rows, 768 -> 768, terms 4", Shape(4096, 4, 4, 4, 192, 192, 1)),
    Work("phm_weight", "768 -> 128, terms 16", SHAPES["paper_down"]),
    Work("phm_weight", "128 -> 768, terms 8", SHAPES["paper_up"]),
    Work("phm_weight", "4096 -> 4096, terms 4", Shape(1, 4, 4, 4, 1024, 1024, 1)),
    PROMPT,
]


def present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the tensors without the absent ones."""
    return [t for t in tensors if t is not None]


def argument_names(op: str) -> list[str]:
    """Return the names of the arguments of a raw operation."""
    return [argument.name for argument in ops.get(op, "reference")._schema.arguments]


def attention_inputs(shape: AttentionShape, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], dict[str, Any]]:
    """Return query, key and value in the layout of the raw operation with the prefixes; and other arguments by name."""
    (*tensors, bias), options = testing.attention_inputs(shape, dtype, seed=seed)
    query, key, value, *prefixes = present(tensors)
    projected = [t.transpose(1, 2).contiguous() for t in (query, key, value)]
    return [*projected, *prefixes], options | {"bias": bias, "causal": shape.causal}


def stacked(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Stack the first tensors of all lists, then the second ones, and so on."""
    return [torch.stack(tensors) for tensors in zip(*lists, strict=True)]


@cache
def batch_of(examples: int, length: int, tasks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mask and the task ids of attempt_mix.

    The examples are padded to the longest one; the shortest has half of its positions. The tasks take turns.
    """
    lengths = torch.linspace(length / 2, length, examples, device=device).ceil()
    mask = torch.arange(length, device=device) < lengths[:, None]
    return mask, torch.arange(examples, device=device) % tasks


def public_arguments(op: str, tensors: Sequence[Tensor]) -> tuple:
    """Return the arguments of the public operation, in its order, from the inputs of a work."""
    if op == "mop_ffn":
        x, down, ups = testing.as_mop_arguments(tensors)
        return x, mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups]
    if op == "attempt_mix":
        x, source, target, *factors = tensors
        mask, task_ids = batch_of(*x.shape[:2], target.shape[0], x.device)
        return x, mask, source, target, task_ids, *factors, x.shape[2] * e
    return tuple(tensors)


def by_reference(op: str, **options: str) -> Callable[..., Any]:
    """Return the plain form of an operation (mop_kernels/reference.py) as a function of the inputs of a work.

    The options go to the operation.
    """

    def judge(*tensors: Tensor) -> Any:
        if op != "attempt_mix":
            return getattr(reference, op)(*public_arguments(op, tensors), **options)
        *given, temperature = public_arguments(op, tensors)
        return reference.attempt_mix(*given, temperature=temperature)[:2]

    return judge


def size_of_call(op: str, tensors: Sequence[Tensor]) -> int:
    """Return the multiply-adds by which "auto" chooses a backend for a call with these inputs."""
    return multiply_adds.of_call(op, dict(zip(argument_names(op), public_arguments(op, tensors))))


def least_multiply_adds(op: str, tensors: Sequence[Tensor]) -> int:
    """Return the multiply-adds of the forward pass in the cheapest exact form.

    For a full rule these are the multiply-adds of a dense layer. In a bank whose layers share x and rule_in of the down
    map, stage 1 of that map counts once per expert: 115.5 million for the bank of the paper.
    """
    if op == "attempt_mix":
        return multiply_adds.attempt_mix(*public_arguments(op, tensors))
    size = size_of_call(op, tensors)
    if op == "mop_ffn":
        x, down, ups = public_arguments(op, tensors)
        layers, experts = reference.group_sizes(x, down, ups)
        if x.shape[0] == down.rule_in.shape[0] == 1:
            size -= (layers - 1) * experts * x.shape[2] * multiply_adds.stages_of(*down[:3])[0]
    return size


def least_work(op: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], direction: str) -> tuple[int, int]:
    """Return the least floating-point operations and bytes of a call.

    Forward reads the inputs and writes the outputs once. Backward counts twice the operations, reads inputs and outputs
    again, and writes the gradients of the inputs.
    """
    flops = 2 * least_multiply_adds(op, inputs)
    read, written = (sum(t.nbytes for t in tensors) for tensors in (inputs, outputs))
    return (flops, read + written) if direction == FORWARD else (3 * flops, 3 * read + 2 * written)


def listed(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of a call as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
