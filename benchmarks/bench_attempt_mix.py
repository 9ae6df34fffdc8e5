"""ATTEMPT's instance prompts, beside the same in PyTorch's operations; all gradients are asked for, that of x too.

Bytes at least: forward reads x, the prompts and the attention module, and writes the prompts with x behind them.
"""

import math
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mop_kernels as mk
from benchmarks.support.cases import (
    CPU_BACKENDS,
    DIRECTIONS,
    Case,
    Contender,
    case_by_label,
    compare,
    every_pair,
    ours,
    prompt_multiply_adds,
)
from mop_kernels import reference, testing
from mop_kernels.testing import PROMPTS


@cache
def batch_of(examples: int, length: int, tasks: int) -> tuple[Tensor, Tensor]:
    """(mask, task_ids): padding behind up to half of the longest example, all tasks in turn."""
    lengths = torch.linspace(length / 2, length, examples).ceil()
    return torch.arange(length) < lengths[:, None], torch.arange(examples) % tasks


def arguments(x, source, target, *factors) -> tuple:
    mask, task_ids = batch_of(x.shape[0], x.shape[1], target.shape[0])
    return x, mask, source, target, task_ids, *factors, x.shape[2] * math.e


def judge(*tensors):
    *given, temperature = arguments(*tensors)
    return reference.attempt_mix(*given, temperature=temperature)


def in_pytorch(*tensors):
    x, mask, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature = arguments(*tensors)
    peak = x.masked_fill(~mask.unsqueeze(-1), -math.inf).max(1).values
    query = F.layer_norm(F.silu(peak @ w_down) @ w_up, ln_weight.shape, ln_weight, ln_bias)
    own = target[task_ids]
    scores = torch.cat([query @ source.max(1).values.T, (query * own.max(1).values).sum(1, keepdim=True)], 1)
    attention = (scores / temperature).softmax(1)
    mixed = (attention[:, :-1] @ source.flatten(1)).view_as(own)
    return torch.cat([own * (1 + attention[:, -1, None, None]) + mixed, x], 1), attention


FORMS = [
    *ours(mk.attempt_mix, arguments, tuple(name for name in CPU_BACKENDS if name != "cuda")),
    Contender("PyTorch operations", in_pytorch),
    Contender("torch.compile, PyTorch operations", in_pytorch, compiled=True),
]
CASES = {
    "32 x 256, d 768, 6 prompts of 100": PROMPTS["paper"],
    "1 x 256, d 768, 6 prompts of 100": PROMPTS["paper"]._replace(batch=1),
}


@case_by_label
def case_of(label, full_size):
    shape = CASES[label] if full_size else PROMPTS["odd"]
    tensors, _ = testing.prompt_inputs(shape, torch.float32)
    return Case(f"attempt_mix, {label}", tensors, judge, prompt_multiply_adds(shape), full_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_pair(dict.fromkeys(CASES, FORMS))
def test_prompts(label, contender, direction, case_of, timed):
    compare(timed, case_of(label), contender, direction)
