"""Comparing two calls that ask for the same numbers in two ways, such as all gradients and some of them."""

import torch
from torch import Tensor

from mop_kernels import backends

ULPS = 32  # of the largest number: several times what another order of these tests' sums changes


def assert_same(found: Tensor, expected: Tensor, backend: str) -> None:
    """Assert equal bits. On a GPU, compare Triton's within a few ulp.

    There the two calls launch two specialisations of a kernel, compiled each for itself: the compiler may lay out their
    tiles, and so order their sums, differently. The same specialisation twice gives the same bits
    (test_determinism.py). The interpreter sums in one order.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if backend != "triton" or backends.interpreting():
        assert torch.equal(found, expected)
    elif found.numel():
        difference, largest = (found.float() - expected.float()).abs().max(), expected.float().abs().max()
        assert difference <= ULPS * torch.finfo(found.dtype).eps * largest
