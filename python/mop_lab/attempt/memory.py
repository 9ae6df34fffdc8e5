"""How much memory a call needs at its peak, seen from outside: resident memory of this process, on Linux.

By the kernel's own high-water mark (VmHWM, reset just before the call), so that scratch, packing buffers and what no
allocator hook sees are counted too. Start the process with ENVIRONMENT set: then every tensor that matters is a mapping
of its own, and memory freed is memory gone.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def growth(function: Callable[[], object]) -> int:
    """Bytes by which resident memory rises above its present level while function runs; its results count."""
    if not RESET.exists():
        raise RuntimeError(f"the peak of resident memory needs Linux's {RESET}, which is not here. Measure on a GPU.")
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = _kilobytes("VmRSS")
    results = function()
    peak = _kilobytes("VmHWM")
    del results
    return (peak - before) * 1024


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))
