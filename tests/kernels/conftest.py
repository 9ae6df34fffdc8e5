"""Every kernel test runs for all backends of this machine, on poisoned memory.

On a GPU the tensors of backend "triton" lie there: the fixture makes it torch's default device for the test. Under
TRITON_INTERPRET=1 the same kernels run on CPU tensors; `pytest tests/kernels -k triton` is then what is worth running.
"""

import os

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # cuBLAS asks for it where deterministic forms are asked for

import contextlib

import pytest
import torch

from mop_kernels import available_backends, backends, testing


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty, in extensions too, comes filled with NaN, so that a number never written cannot pass."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # of torch's own CUDA operations a few have no deterministic form: they may only warn, the filling counts
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_numbers_every_run():
    """A bound that chance can break says nothing."""
    torch.manual_seed(0)


@pytest.fixture(params=available_backends())
def backend(request) -> str:
    """Its name; new tensors come on its device."""
    reason = why_not(request.param, request.node.callspec.params.get("dtype"))
    if reason is not None:
        pytest.skip(reason)
    device = testing.device_of(request.param)
    with device if device.type != "cpu" else contextlib.nullcontext():
        yield request.param


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def float64(backend) -> torch.dtype:
    """For tests that compute in it: those of modules to many digits, and gradcheck."""
    reason = why_not(backend, torch.float64)
    if reason is not None:
        pytest.skip(reason)
    return torch.float64


def why_not(backend: str, dtype: torch.dtype | None) -> str | None:
    if backend == "triton" and dtype == torch.float64:
        return "the Triton kernels take no float64"
    if backend == "cpu" and dtype == torch.float16:
        return "the CPU kernels take no float16"
    if backend == "triton" and dtype == torch.bfloat16 and backends.interpreting():
        return "bfloat16 products are wrong in Triton's interpreter"
    return None
