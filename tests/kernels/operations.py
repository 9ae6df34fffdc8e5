"""Every operation with small inputs, beside the same function in plain PyTorch: what derivatives are compared with."""

import torch
from torch import Tensor

from mop_kernels import reference, step_reference
from mop_kernels.step import STEP_OPERATIONS
from mop_kernels.step_truth import SEED, P
from mop_kernels.step_truth import cases as step_cases
from mop_kernels.testing import ATTENTIONS, Bank, PromptShape, Shape, attention_inputs, prompt_inputs
from mop_kernels.truth import Case, bank_case, product_case, prompt_case

SMALL = Shape(3, 2, 2, 3, 3, 2, 2)
BANK = Bank(2, 2, Shape(3, 2, 2, 2, 3, 2, 2), Shape(3, 1, 2, 3, 2, 2, 1), maps=2)
PROMPTS = PromptShape(3, 4, 4, 2, 2, 3, 3)
OF_ATTENTION = attention_inputs(ATTENTIONS["odd"], torch.float64)[1]
OF_PROMPTS = prompt_inputs(PROMPTS, torch.float64)[1]


def _attempt_mix(x, source, target, *factors):
    """Compute the reference instead of one example at a time, which torch.vmap cannot batch."""
    mask, ids = (OF_PROMPTS[name].to(x.device) for name in ("mask", "task_ids"))
    outputs = reference.attempt_mix(x, mask, source, target, ids, *factors, temperature=OF_PROMPTS["temperature"])
    return outputs[:2]


def _prefix_attention(query, key, value, prefix_key, prefix_value, bias):
    shape = ATTENTIONS["odd"]
    rows, key_mask = (OF_ATTENTION[name].to(query.device) for name in ("rows", "key_mask"))
    query, key, value = (t.transpose(-3, -2) for t in (query, key, value))
    settings = (torch.tensor([SEED]), shape.causal, shape.width**-0.5, P)
    tensors = (query, key, value, prefix_key, prefix_value, rows, bias, key_mask)
    return step_reference.prefix_attention(*tensors, *settings)[0].transpose(-3, -2)


def _of(op: str) -> Case:
    case = next(iter(step_cases()[op].values()))
    return case._replace(truth=_prefix_attention) if op == "prefix_attention" else case


OPERATIONS: dict[str, Case] = {
    **{op: product_case(op, SMALL) for op in ("phm_weight", "phm_linear", "lowrank_phm_linear")},
    "mop_ffn": bank_case(BANK, "gelu"),
    "mop_ffn of one expert": bank_case(BANK, "tanh", [1]),
    "attempt_mix": prompt_case(PROMPTS)._replace(truth=_attempt_mix),
    **{op: _of(op) for op in STEP_OPERATIONS},
}

# the truth of each operation, in another order of its sums than the reference's
OTHER_ORDERS = {name: case.truth for name, case in OPERATIONS.items()} | {"attempt_mix": prompt_case(PROMPTS).truth}


def as_tuple(outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
