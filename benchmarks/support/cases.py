"""A case: the inputs of one call, the right results and the least work. A contender is proven right, then timed.

Our backends must stay within the error budget of mop_kernels/testing.py. Any other form must be right to four digits in
float32 (eager sums over 4096 rows keep no more), or to 16 roundings of its precision. This holds for outputs and
gradients.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.support.contenders import Contender, Function, forms, ours
from benchmarks.support.work import (
    BOTH,
    DIRECTIONS,
    FLOAT32,
    Precision,
    Work,
    by_reference,
    least_work,
    listed,
    present,
)
from mop_kernels import testing


class Case:
    """A work with its inputs in one precision, and its results in that precision and in float64."""

    def __init__(
        self,
        work: Work,
        full_size: bool,
        precision: Precision = FLOAT32,
        *,
        label: str | None = None,
        judge: Function | None = None,
        outputs_only: bool = False,
    ):
        """Make the inputs on torch's default device, and the right results.

        Args:
            work: The operation and its size.
            full_size: False: the work is made small, and compiled forms are traced but not compiled.
            precision: Dtype of the inputs.
            label: The name of the work in the tables.
            judge: The function that gives the right results, in float64. Its error in `precision` sets the error
                budget. None: the reference.
            outputs_only: True: gradients are not judged. Among millions of hidden numbers a few lie so near to relu's
                kink that two right float32 computations have different gradients. In 16 bits and in TF32 the gradients
                of a bank are never judged.
        """
        torch.compiler.reset()  # a compiled form meets one case's shapes, not the eighth recompilation's fallback
        self.work, self.label, self.full_size = work if full_size else work.small(), label or work.name, full_size
        self.tensors = self.work.inputs(precision.dtype)
        self.outputs_only = outputs_only or (work.op == "mop_ffn" and (precision.dtype.itemsize == 2 or precision.tf32))
        self.largest_error = max(1e-4, 16 * precision.eps)
        judge = judge or by_reference(work.op)
        g = torch.Generator().manual_seed(1)
        self.grads = [testing.normal(g, y.dtype, *y.shape) for y in listed(judge(*self.tensors))]
        self.expected = self._results(judge, self.tensors, self.grads)
        exact, exact_grads = (present(testing.in_float64(some)) for some in (self.tensors, self.grads))
        self.truth = self._results(judge, exact, exact_grads)
        self._ready: dict[str, tuple[Function, list[Tensor]]] = {}

    def least_columns(self, direction: str) -> dict[str, int]:
        """Return the least floating-point operations and bytes, as columns of a row."""
        return dict(zip(("flops", "bytes"), least_work(self.work.op, self.tensors, self.grads, direction)))

    def call_of(self, contender: Contender, direction: str) -> tuple[Function, list[Tensor]]:
        """Return the function to time and its tensors. It is proven right once. Backward asks for all gradients."""
        if contender.name not in self._ready:
            self._ready[contender.name] = self._prepared(contender)
        function, tensors = self._ready[contender.name]
        if direction != BOTH:
            return function, tensors
        leaves = [t if t.requires_grad else t.clone().requires_grad_() for t in tensors]
        return lambda *given: torch.autograd.grad(function(*given), given, self.grads), leaves

    def _prepared(self, contender: Contender) -> tuple[Function, list[Tensor]]:
        stand_in = contender.kind == "stand-in"
        function, tensors = contender.function(self.tensors) if stand_in else (contender.function, self.tensors)
        if contender.compiled:  # a smoke run traces and differentiates the form, without minutes of C++
            function = torch.compile(function, backend="inductor" if self.full_size else "aot_eager", dynamic=False)
        found = self._results(function, tensors, self.grads, stand_in)
        if contender.kind in ("ours", "reference"):
            testing.assert_within_budget(found, self.expected, self.truth)
            return function, tensors
        for actual, truth in zip(found, self.truth):  # a stand-in has outputs only, which come first
            error = testing.relative_error(actual, truth)
            assert error < self.largest_error, f"relative error {error:.3g} in a tensor of shape {tuple(truth.shape)}"
        return function, tensors

    def _results(
        self, function: Function, tensors: Sequence[Tensor], grads: Sequence[Tensor], stand_in: bool = False
    ) -> list[Tensor]:
        """Return the outputs, then the gradients that are judged."""
        judged = not (self.outputs_only or stand_in)
        with torch.set_grad_enabled(judged):
            outputs, gradients = testing.value_and_gradients(function, tensors, grads, [judged] * len(tensors))
        return [*outputs, *present(gradients)]


def compare(timed: Callable[..., None], case: Case, contender: Contender, direction: str, **about: Any) -> None:
    """Prove, then time, one contender in one direction.

    Args:
        timed: The fixture of conftest.py.
        case: The work with its inputs and right results.
        contender: The way to compute it.
        direction: FORWARD or BOTH.
        about: More arguments of `timed`, and more columns of the row.
    """
    call, tensors = case.call_of(contender, direction)
    about = {"kind": contender.kind, "direction": direction, **case.least_columns(direction), **about}
    with torch.set_grad_enabled(direction == BOTH):
        timed(lambda: call(*tensors), f"{case.label}: {direction}", contender.name, **about)


def comparison(compared: Mapping[Work, Iterable[str]], **options: Any) -> Callable[..., None]:
    """Return a test that proves and times our backends and the named forms of each work, in both directions.

    The options are arguments of Case.
    """
    pairs = [(work, c) for work, names in compared.items() for c in (*ours(work.op), *forms(work.op, *names))]

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize(("work", "contender"), pairs, ids=[f"{c.name}; {work.label}" for work, c in pairs])
    def test(
        work: Work, contender: Contender, direction: str, case_of: Callable[..., Case], timed: Callable[..., None]
    ) -> None:
        compare(timed, case_of(work, **options), contender, direction)

    return test
