"""ATTEMPT's instance prompts, compared with PyTorch's operations. All gradients are asked for, also the gradient of x.

The least bytes: forward reads x, the prompts and the attention module, and writes the prompts with x behind them.
"""

from benchmarks.support.cases import comparison
from benchmarks.support.work import PROMPT, PROMPTS, Work

WORKS = [PROMPT, Work("attempt_mix", "1 x 256, d 768, 6 prompts of 100", PROMPTS["paper"]._replace(batch=1))]
test_prompts = comparison(dict.fromkeys(WORKS, ("PyTorch operations", "torch.compile, PyTorch operations")))
