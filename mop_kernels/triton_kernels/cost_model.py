"""What a step costs on an H200, in microseconds: the unit in which `plan` of an operation compares its ways.

Rates as measured on one, but for float32 on the CUDA cores, a vendor figure. Nothing is timed while a program runs.
"""

import torch

from .launch import input_precision

SMS = 132
BYTES = 4.3e6  # a microsecond
CUDA_CORES, TF32, HALF = 60e6, 395e6, 790e6  # operations a microsecond
LAUNCH = 3.0
LIBRARY_SHARE = 0.9  # of the rate that a matrix product of the library reaches
OWN_SHARE = 0.6  # and one of ours: a guess until it is measured
READERS = 64  # so many programs that read at once reach the memory's rate


def uses_tf32(dtype: torch.dtype) -> bool:
    return dtype is torch.float32 and input_precision() == "tf32"


def product_rate(dtype: torch.dtype, tf32: bool) -> float:
    """Operations a microsecond of a matrix product, at best."""
    return HALF if dtype.itemsize == 2 else TF32 if tf32 else CUDA_CORES


def step(moved: float, operations: float, rate: float) -> float:
    """One launch: the longer of its bytes and its operations."""
    return LAUNCH + max(moved / BYTES, operations / rate)
