"""Floors: the least time of a work, from the rates of the machine that ran it.

A result holds the rates of its own run. The file of a CPU holds the rates before and after its rows. The floor takes
the better rate, because a floor must not rise when something disturbed one measurement.
"""

import statistics
from typing import Any

import torch

from benchmarks.support.timer import eager_times
from benchmarks.support.work import FLOAT32, PRECISIONS, Precision

# Rates of an H200: copy and bfloat16 as measured on one, float32 from the vendor's data sheet, TF32 half of bfloat16.
H200: dict[str, Any] = {
    "copy_gbps": 4300.0,
    "mm_gflops": {"float32": 60e3, "tf32": 395e3, "bfloat16": 790e3, "float16": 790e3},
}


def rates(side: int, numbers: int, precisions: tuple[Precision, ...] = PRECISIONS) -> dict[str, Any]:
    """Measure the rates of torch's default device and return their medians.

    Args:
        side: Rows and columns of the matrices that torch.mm multiplies.
        numbers: float32 numbers of the copy. Bytes read and bytes written both count.
        precisions: Precisions of the products.

    Returns:
        {"copy_gbps": GB/s, "mm_gflops": {name of the precision: GFLOP/s}}.
    """
    source = torch.randn(numbers)
    target = torch.empty_like(source)
    copy_ms = statistics.median(eager_times(lambda: target.copy_(source), [[]], 15))
    products = {}
    for precision in precisions:
        factors = [torch.randn(side, side).to(precision.dtype) for _ in range(2)]
        with precision.in_force():
            products[precision.name] = 2 * side**3 / statistics.median(eager_times(torch.mm, [factors], 15)) / 1e6
    return {"copy_gbps": 2 * source.nbytes / copy_ms / 1e6, "mm_gflops": products}


def rates_of_cpu() -> dict[str, float]:
    """Measure torch.mm of 1024^3 in float32 in GFLOP/s, and a copy of 64 MB in GB/s."""
    found = rates(1024, 16 * 2**20, (FLOAT32,))
    return {**found, "mm_gflops": found["mm_gflops"]["float32"]}


def rates_of(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return the rates of a result. None if the result has no rates."""
    if "before" not in found:
        return found.get("rates")
    before, after = found["before"], found.get("after", {})  # a run that is not over has no rates after
    return {name: max(rate, after.get(name, rate)) for name, rate in before.items()}


def floors_ms(flops: float, nbytes: float, rates: dict[str, Any], precision: str = "float32") -> dict[str, float]:
    """Return the least milliseconds for the operations, as "arithmetic", and for the bytes, as "bytes"."""
    mm = rates["mm_gflops"]
    return {
        "arithmetic": flops / (mm[precision] if isinstance(mm, dict) else mm) / 1e6,
        "bytes": nbytes / rates["copy_gbps"] / 1e6,
    }


def of_row(row: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """Return the floors of a row of a result in milliseconds. Empty where no work is counted.

    A GPU's group is named "operation, size, precision: direction".
    """
    rates = rates_of(found)
    if row.get("flops") is None or rates is None:
        return {}
    return floors_ms(row["flops"], row["bytes"], rates, row["group"].rsplit(":", 1)[0].rsplit(", ", 1)[-1])
