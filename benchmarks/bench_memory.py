"""Peak memory of every way to compute the paper's bank, each in its own process.

The process is `python -m benchmarks.bench_memory NAME BANK`. It measures its resident memory by mop_lab.attempt.memory
and prints it as JSON. The needed memory is the memory that a caller holds anyway: inputs and outputs; with backward
also the gradients of both.
"""

import json
import sys
from collections.abc import Sequence

import pytest
import torch
from mop_lab.attempt.memory import growth
from torch import Tensor

from benchmarks.support import peak_memory
from benchmarks.support.contenders import COMPILED, FORMS, forms, ours
from benchmarks.support.work import BANKS, BOTH, FORWARD, Work

CONTENDERS = [*ours("mop_ffn"), *forms("mop_ffn", *FORMS["mop_ffn"], *COMPILED)]


@peak_memory.ON_LINUX
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
def test_peak_memory(contender, full_size, record):
    if not full_size and contender.kind != "ours":
        pytest.skip("one process is enough to see that the probe works")
    found = peak_memory.of_process("bench_memory", contender.name, "paper" if full_size else "small")
    for direction, row in found.items():
        group = f"peak memory, paper bank: {direction}"
        peak_memory.keep(record, full_size, row, group=group, name=contender.name, kind=contender.kind)


def megabytes(tensors: Sequence[Tensor]) -> float:
    """Return the size of the tensors in MB."""
    return sum(t.nbytes for t in tensors) / 1e6


def inputs(bank: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs of a named bank, and the gradients of its outputs."""
    work = Work("mop_ffn", bank, BANKS[bank])
    return [t.requires_grad_() for t in work.inputs(torch.float32)], [torch.ones(s) for s in work.output_shapes()]


def measure(name: str, bank: str) -> dict[str, dict[str, float]]:
    """Return the peak memory and the needed memory of each direction, in MB.

    Args:
        name: Name of a contender.
        bank: Name of a bank.
    """
    contender = next(c for c in CONTENDERS if c.name == name)
    function = torch.compile(contender.function, dynamic=False) if contender.compiled else contender.function

    @torch.no_grad()
    def forward() -> object:
        return function(*tensors)

    def both() -> object:
        outputs = function(*tensors)
        return outputs, torch.autograd.grad(outputs, tensors, grads)

    # load code and start threads; a compiled form also compiles, which only its own sizes make it do
    tensors, grads = inputs(bank if contender.compiled else "small")
    forward(), both()
    tensors, grads = inputs(bank)
    given, outputs = megabytes(tensors), megabytes(grads)
    return {
        FORWARD: {"peak_mb": given + growth(forward) / 1e6, "needed_mb": given + outputs},
        # the outputs' gradients are there before backward starts, the inputs' are its result
        BOTH: {"peak_mb": given + outputs + growth(both) / 1e6, "needed_mb": 2 * (given + outputs)},
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
