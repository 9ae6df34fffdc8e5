"""ATTEMPT's instance prompts, compared with the same in PyTorch's operations. All gradients are asked for, also of x.

Bytes at least: forward reads x, the prompts and the attention module, and writes the prompts with x behind them.
"""

import pytest

from benchmarks.support.cases import compare, every_contender
from benchmarks.support.contenders import forms, ours
from benchmarks.support.work import DIRECTIONS, PROMPT, PROMPTS, Work

CONTENDERS = [*ours("attempt_mix"), *forms("attempt_mix", "PyTorch operations", "torch.compile, PyTorch operations")]
WORKS = [PROMPT, Work("attempt_mix", "1 x 256, d 768, 6 prompts of 100", PROMPTS["paper"]._replace(batch=1))]


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_contender(dict.fromkeys(WORKS, CONTENDERS))
def test_prompts(work, contender, direction, case_of, timed):
    compare(timed, case_of(work), contender, direction)
