"""Every operation with small inputs, beside the same function in plain PyTorch: what derivatives are compared with."""

import torch
from torch import Tensor

from mop_kernels import reference
from mop_kernels.step_truth import cases as step_cases
from mop_kernels.testing import Bank, PromptShape, Shape, prompt_inputs
from mop_kernels.truth import Case, bank_case, product_case, prompt_case

SMALL = Shape(3, 2, 2, 3, 3, 2, 2)
BANK = Bank(2, 2, Shape(3, 2, 2, 2, 3, 2, 2), Shape(3, 1, 2, 3, 2, 2, 1), maps=2)
PROMPTS = PromptShape(3, 4, 4, 2, 2, 3, 3)
OF_PROMPTS = prompt_inputs(PROMPTS, torch.float64)[1]


def _attempt_mix(x, source, target, *factors):
    """Compute the reference instead of one example at a time, which torch.vmap cannot batch."""
    mask, ids = (OF_PROMPTS[name].to(x.device) for name in ("mask", "task_ids"))
    outputs = reference.attempt_mix(x, mask, source, target, ids, *factors, temperature=OF_PROMPTS["temperature"])
    return outputs[:2]


OPERATIONS: dict[str, Case] = {
    **{op: product_case(op, SMALL) for op in ("phm_weight", "phm_linear", "lowrank_phm_linear")},
    "mop_ffn": bank_case(BANK, "gelu"),
    "mop_ffn of one expert": bank_case(BANK, "tanh", [1]),
    "attempt_mix": prompt_case(PROMPTS)._replace(truth=_attempt_mix),
    **{op: next(iter(cases.values())) for op, cases in step_cases().items()},
}


def as_tuple(outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
