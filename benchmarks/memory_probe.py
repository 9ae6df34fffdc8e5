"""Peak memory of one way to compute the paper's bank: `python -m benchmarks.memory_probe NAME BANK` prints JSON.

Resident memory of this fresh process, by the kernel's own high-water mark (VmHWM, reset just before the call), so that
scratch, packing buffers and what no allocator hook sees are counted too. Start it with MALLOC_MMAP_THRESHOLD_ set: then
every tensor that matters is a mapping of its own, and memory freed is memory gone.
"""

import ctypes
import json
import sys
from pathlib import Path

import torch

from benchmarks.bench_mop_ffn import CONTENDERS
from mop_kernels import testing
from mop_kernels.testing import Bank

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


def growth(function) -> float:
    """MB by which resident memory rises above its present level while function runs; its results count."""
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = kilobytes("VmRSS")
    results = function()
    peak = kilobytes("VmHWM")
    del results
    return (peak - before) * 1024 / 1e6


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
        "forward": {"peak_mb": given + growth(forward), "needed_mb": given + outputs},
        # the outputs' gradients are there before backward starts, the inputs' are its result
        "forward + backward": {
            "peak_mb": given + outputs + growth(both),
            "needed_mb": 2 * (given + outputs),
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], testing.BANKS[sys.argv[2]])))
