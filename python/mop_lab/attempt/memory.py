"""The peak memory of a call: the growth of this process's resident memory, on Linux.

The number is the kernel's own high-water mark (VmHWM), which is reset just before the call. So it counts scratch
memory, packing buffers and other memory that no allocator hook sees. Start the process with ENVIRONMENT set: then every
large tensor is a mapping of its own, and freed memory returns to the system.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def growth(function: Callable[[], object]) -> int:
    """Return the bytes by which resident memory rises above its present level while a function runs.

    The results of the function are counted.

    Raises:
        RuntimeError: The system is not Linux.
    """
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
