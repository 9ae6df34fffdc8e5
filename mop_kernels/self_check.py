"""Compare one tiny launch of a GPU backend with the reference, once per backend, device and process.

An installed backend may still fail. The toolkit that compiled the CUDA kernels may be newer than the driver, the
kernels may have been compiled for other GPUs, and Triton needs a C compiler and Python's headers when it first
launches. The check finds such faults before a user's call does. It launches one block, of integers that every precision
holds.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from . import ops, reference

CURE = "python -m mop_kernels.check --device cuda shows what fails"

failures: set[str] = set()  # all failures of this process
_is_off = False


@contextmanager
def off() -> Iterator[None]:
    """Trust every backend within the block, in the whole process. For a caller that checks each operation itself."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def is_off() -> bool:
    """Tell whether every backend is trusted."""
    return _is_off


def can_look() -> bool:
    """Tell whether a launch may be made now. It may not go into a stream that is being captured."""
    return not _is_off and not torch.cuda.is_current_stream_capturing()


def device_of(index: int) -> torch.device:
    """Return GPU number `index`. Tests replace this function."""
    return torch.device("cuda", index)


def failure(backend: str, index: int) -> str | None:
    """Return why the backend's launch on GPU number `index` failed or gave a wrong result. Return None if it was right.

    The launch runs in its own thread, without the caller's modes, transforms of torch.func, autocast and stream.

    Raises:
        torch.OutOfMemoryError: There is no memory. This is no fault of the backend.
    """
    with ThreadPoolExecutor(1) as thread, _without_complaints():
        found = thread.submit(_launch, backend, device_of(index)).result()
    if found is not None:
        failures.add(found)
    return found


@contextmanager
def _without_complaints() -> Iterator[None]:
    """Allow warnings and waits for the GPU within the block, even if the program has made them errors."""
    initialised = torch.cuda.is_initialized()
    mode = torch.cuda.get_sync_debug_mode() if initialised else 0
    if mode:
        torch.cuda.set_sync_debug_mode(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if mode:
            torch.cuda.set_sync_debug_mode(mode)


def _launch(backend: str, device: torch.device) -> str | None:
    rule = torch.arange(-4, 4, dtype=torch.float32, device="cpu").reshape(2, 2, 2)
    local = torch.arange(24, dtype=torch.float32, device="cpu").reshape(2, 3, 4)
    expected = reference.phm_weight(rule, local)
    try:
        with torch.no_grad():
            actual = ops.get("phm_weight", backend)(rule.to(device), local.to(device)).cpu()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver or a missing header
        lines = str(error).strip().splitlines() or [""]
        return f"a tiny launch on {device} raised {type(error).__name__}: {lines[0][:300]}; {CURE}"
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        got = f"{tuple(actual.shape)} of {actual.dtype}"
        return f"a tiny launch on {device} gave {got} instead of {tuple(expected.shape)} of {expected.dtype}; {CURE}"
    if not torch.equal(actual, expected):
        wrong = (actual - expected).abs().max().item()
        return f"a tiny launch on {device} differs from the reference by {wrong:.3g}; {CURE}"
    return None
