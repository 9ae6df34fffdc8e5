"""A case: the inputs of one call, the right answers, the least work; a contender: one way to compute it.

`compare` proves a contender right and then times it. The gate: our backends within the error budget of
mop_kernels/testing.py, any other form right to four digits in float32 (eager sums over 4096 rows keep no more), in
outputs and gradients.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import mop_kernels as mk
from mop_kernels import multiply_adds, testing
from mop_kernels.testing import Bank, PromptShape, Shape

FORWARD, BOTH = DIRECTIONS = ("forward", "forward + backward")


class Contender(NamedTuple):
    """One way: function(*tensors), or what `prepare(tensors)` returns: (function, its own tensors).

    kind: "ours"; "reference", the backend of that name; "form", which computes the same; "stand-in", whose gradients
    are of other tensors (a dense weight, a module's parameters), so that only its outputs are judged.
    """

    name: str
    function: Callable | None = None
    kind: str = "form"
    compiled: bool = False
    prepare: Callable[[list[Tensor]], tuple[Callable, list[Tensor]]] | None = None


CPU_BACKENDS = tuple(name for name in reversed(mk.available_backends()) if name != "triton")


def ours(
    operation: Callable, adapt: Callable = lambda *tensors: tensors, backends: tuple[str, ...] = CPU_BACKENDS
) -> list[Contender]:
    """The operation by each backend; adapt(*tensors) gives its arguments."""

    def by(backend: str) -> Callable:
        return lambda *tensors: operation(*adapt(*tensors), backend=backend)

    return [
        Contender(f"mop_kernels {name}", by(name), "reference" if name == "reference" else "ours") for name in backends
    ]


def mop_arguments(*tensors: Tensor) -> tuple:
    x, down, ups = testing.as_mop_arguments(tensors)
    return x, mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups]


class Case:
    """judge: the function that defines right, run in float32 (its error is the budget's measure) and in float64.

    multiply_adds: of the forward pass; backward counts twice that. Bytes at least: forward reads the inputs and writes
    the outputs; backward reads both again and writes the gradients of the inputs.

    loose: the relative error that forms of others may have.
    outputs_only: gradients are not judged. Among millions of hidden numbers a few lie within rounding of relu's kink,
    where two right float32 computations have different gradients.
    """

    def __init__(
        self,
        label: str,
        tensors: list[Tensor],
        judge: Callable,
        multiply_adds: int,
        full_size: bool,
        outputs_only: bool = False,
        loose: float = 1e-4,
    ):
        torch.compiler.reset()  # a compiled form meets one case's shapes, not the eighth recompilation's fallback
        self.label, self.tensors, self.multiply_adds, self.full_size = label, tensors, multiply_adds, full_size
        self.outputs_only, self.loose = outputs_only, loose
        g = torch.Generator().manual_seed(1)
        self.grads = [testing.normal(g, y.dtype, *y.shape) for y in _outputs(judge, tensors)]
        self.expected, self.truth = (
            self._results(judge, given, grads, outputs_only)
            for given, grads in (
                (tensors, self.grads),
                (testing.in_float64(tensors), testing.in_float64(self.grads)),
            )
        )
        self._ready: dict[str, tuple[Callable, list[Tensor]]] = {}

    def least_work(self, direction: str) -> dict[str, int]:
        read, written = (sum(t.nbytes for t in some) for some in (self.tensors, self.grads))
        if direction == FORWARD:
            return {"flops": 2 * self.multiply_adds, "nbytes": read + written}
        return {"flops": 6 * self.multiply_adds, "nbytes": 3 * read + 2 * written}

    def ready(self, contender: Contender) -> tuple[Callable, list[Tensor]]:
        """The contender's function and tensors, proven right once."""
        if contender.name not in self._ready:
            function, tensors = contender.function, self.tensors
            if contender.prepare is not None:
                function, tensors = contender.prepare(tensors)
            if contender.compiled:  # a smoke run traces and differentiates the form, without minutes of C++
                backend = "inductor" if self.full_size else "aot_eager"
                function = torch.compile(function, backend=backend, dynamic=False)
            self._prove(contender.kind, function, tensors)
            self._ready[contender.name] = function, tensors
        return self._ready[contender.name]

    @staticmethod
    def _results(function: Callable, tensors: list[Tensor], grads: list[Tensor], outputs_only: bool) -> list[Tensor]:
        """Outputs, then gradients."""
        if outputs_only:
            return _outputs(function, tensors)
        outputs, gradients = testing.value_and_gradients(function, tensors, grads)
        return [*outputs, *gradients]

    def _prove(self, kind: str, function: Callable, tensors: list[Tensor]) -> None:
        found = self._results(function, tensors, self.grads, self.outputs_only or kind == "stand-in")
        if kind in ("ours", "reference"):
            testing.assert_within_budget(found, self.expected, self.truth)
            return
        for actual, truth in zip(found, self.truth):  # a stand-in has outputs only, which come first
            error = testing.relative_error(actual, truth)
            assert error < self.loose, f"relative error {error:.3g} in a tensor of shape {tuple(truth.shape)}"


def _outputs(function: Callable, tensors: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        outputs = function(*tensors)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def compare(timed, case: Case, contender: Contender, direction: str, **about) -> None:
    """Prove, then time, one contender in one direction; `about` goes to `timed`, and what that does not know into the
    row of the JSON."""
    function, tensors = case.ready(contender)
    about = {"kind": contender.kind, "direction": direction, **case.least_work(direction), **about}
    group = f"{case.label}: {direction}"
    if direction == FORWARD:
        with torch.no_grad():
            timed(lambda: function(*tensors), group, contender.name, **about)
        return
    leaves = [t if t.requires_grad else t.clone().requires_grad_() for t in tensors]
    timed(lambda: torch.autograd.grad(function(*leaves), leaves, case.grads), group, contender.name, **about)


def every_pair(contenders: dict[str, list[Contender]]):
    """Parametrize a test over (label, contender), one case after the other."""
    pairs = [(label, contender) for label, some in contenders.items() for contender in some]
    ids = [f"{contender.name}; {label}" for label, contender in pairs]
    return pytest.mark.parametrize(("label", "contender"), pairs, ids=ids)


def case_by_label(make: Callable[[str, bool], Case]):
    """A fixture out of make(label, full_size): gives a test the case that its label names.

    The last one is kept: the tests of a case follow each other.
    """

    @pytest.fixture(scope="module")
    def case_of(full_size):
        return lru_cache(maxsize=1)(lambda label: make(label, full_size))

    return case_of


def _stages(s: Shape) -> tuple[int, int, int]:
    return multiply_adds.three_stages(s.terms, s.g_in, s.rank, s.g_out, s.loc_in, s.loc_out)


def lowrank_multiply_adds(s: Shape) -> int:
    """Count the three stages of one layer."""
    return s.rows * sum(_stages(s))


def bank_multiply_adds(bank: Bank) -> int:
    """Count the stages of all pairs and maps. Stage 1 of the down map counts once per expert: 115.5 M in the paper."""
    down, up = bank.down, bank.up
    stage_1 = down.rows * _stages(down)[0]
    of_pair = lowrank_multiply_adds(down) - stage_1 + bank.maps * lowrank_multiply_adds(up)
    return bank.layers * bank.experts * of_pair + bank.experts * stage_1


def prompt_multiply_adds(s: PromptShape) -> int:
    """Count the two products of the attention, its scores, and the mix."""
    return multiply_adds.of_prompts(s.batch, s.sources, s.rows, s.width, s.rank)
