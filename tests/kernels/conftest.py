"""Every kernel test runs for all backends of this machine, on poisoned memory."""

import pytest
import torch

from mop_kernels import available_backends


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty, in extensions too, comes filled with NaN, so that a number never written cannot pass."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
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
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param
