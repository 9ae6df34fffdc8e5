"""Peak memory of one way to compute the paper's bank: `python -m benchmarks.support.memory_probe NAME BANK` prints JSON.

Resident memory of this fresh process, as mop_lab.attempt.memory measures it.
"""

import json
import sys

import torch
from mop_lab.attempt.memory import growth

from benchmarks.bench_mop_ffn import CONTENDERS
from mop_kernels import testing
from mop_kernels.testing import Bank


def megabytes(tensors) -> float:
    return sum(t.nbytes for t in tensors) / 1e6


def inputs(bank: Bank) -> tuple[list, list]:
    tensors = [t.requires_grad_() for t in testing.mop_inputs(bank, torch.float32)]
    shape = (bank.layers, bank.experts, bank.up.rows, bank.up.d_out)
    return tensors, [torch.ones(shape) for _ in range(bank.maps)]


def measure(name: str, bank: Bank) -> dict[str, dict[str, float]]:
    contender = next(c for c in CONTENDERS if c.name == name)
    function = torch.compile(contender.function, dynamic=False) if contender.compiled else contender.function

    def forward():
        with torch.no_grad():
            return function(*tensors)

    def both():
        outputs = function(*tensors)
        return outputs, torch.autograd.grad(outputs, tensors, grads)

    # load code and start threads; a compiled form also compiles, which only its own sizes make it do
    tensors, grads = inputs(bank if contender.compiled else testing.BANKS["small"])
    forward(), both()
    tensors, grads = inputs(bank)
    given, outputs = megabytes(tensors), megabytes(grads)
    return {
        "forward": {"peak_mb": given + growth(forward) / 1e6, "needed_mb": given + outputs},
        # the outputs' gradients are there before backward starts, the inputs' are its result
        "forward + backward": {
            "peak_mb": given + outputs + growth(both) / 1e6,
            "needed_mb": 2 * (given + outputs),
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], testing.BANKS[sys.argv[2]])))
