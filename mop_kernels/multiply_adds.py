"""Count the multiply-adds of each operation, from the sizes of its tensors.

The forward counts are the size of a call: `backends.resolve` compares them with the crossover of a GPU.
`flop_counts` gives twice the counts to torch's FLOP counter. Sums, activations and softmax count as zero.

A backward count adds up the products that the asked gradients need. Each product is counted once. The arguments
`rule`, `local`, `x` and so on of a backward count are 1 where the gradient of that tensor is asked, and 0 elsewhere.
"""

from collections.abc import Sequence

from torch import Tensor

from .reference import group_sizes


def three_stages(terms: int, g_in: int, rank: int, g_out: int, loc_in: int, loc_out: int) -> tuple[int, int, int]:
    """Count per row t = x rule_in, s = t local and y = s rule_out."""
    width = terms * rank
    return width * g_in * loc_in, width * loc_in * loc_out, width * g_out * loc_out


def stages_of(rule_in: Tensor, rule_out: Tensor | None, local: Tensor) -> tuple[int, int, int]:
    """Count the three stages of these factors. They may have group dims.

    rule_out is None for a full rule, which mop_ffn computes as a low-rank rule with an identity on its smaller side.
    """
    terms, g_in, rank = rule_in.shape[-3:]
    loc_in, loc_out = local.shape[-2:]
    if rule_out is None:
        return three_stages(terms, g_in, min(g_in, rank), rank, loc_in, loc_out)
    return three_stages(terms, g_in, rank, rule_out.shape[-1], loc_in, loc_out)


def backward_of_stages(stages: tuple[int, int, int], x: int, rule_in: int, rule_out: int, local: int) -> int:
    """Count per row t and s again where they are read, the gradients of s and t, and one product per asked gradient.

    first * (t + grad_x + grad_rule_in) + second * (s + grad_t + grad_local) + third * (grad_s + grad_rule_out)

    t is read for local and rule_out, s for rule_out, grad_t for x and rule_in, grad_s for x, rule_in and local.
    """
    first, second, third = stages
    t, s, grad_t, grad_s = local | rule_out, rule_out, x | rule_in, x | rule_in | local
    return first * (t + x + rule_in) + second * (s + grad_t + local) + third * (grad_s + rule_out)


def of_weight(rule: Tensor, local: Tensor) -> int:
    """Count W = sum_i rule[i] (x) local[i]: terms * in * out."""
    return rule.numel() * local.shape[-2] * local.shape[-1]


def of_weight_backward(rule_factor: Tensor, local_factor: Tensor, rule: int, local: int) -> int:
    """Count one product of the size of W per asked gradient."""
    return of_weight(rule_factor, local_factor) * (rule + local)


def of_dense(x: Tensor, rule: Tensor, local: Tensor) -> int:
    """Count y = x W: rows * in * out. Building W is not counted."""
    return x.numel() * rule.shape[2] * local.shape[2]


def of_dense_backward(rows: Tensor, rule_factor: Tensor, local_factor: Tensor, x: int, rule: int, local: int) -> int:
    """Count grad_x = grad W^T with W built again, grad_W = x^T grad once, and one product per asked factor.

    rows * in * out * (x + (rule or local)) + terms * in * out * (x + rule + local)
    """
    weight = of_weight(rule_factor, local_factor)
    return of_dense(rows, rule_factor, local_factor) * (x + (rule | local)) + weight * (x + rule + local)


def of_stages(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor) -> int:
    """Count the three stages on all rows of x."""
    return x.numel() // x.shape[-1] * sum(stages_of(rule_in, rule_out, local))


def of_bank(x: Tensor, down, ups: Sequence, experts: Tensor | None = None) -> int:
    """Count the three stages of every map, per (layer, expert) pair and row. `experts` leaves those experts only."""
    per_row = sum(sum(stages_of(*phm[:3])) for phm in (down, *ups))
    return _rows_of_bank(x, down, ups, experts) * per_row


def of_bank_backward(
    x: Tensor, down, ups: Sequence, experts: Tensor | None, asked_x: int, asked_down: Sequence, asked_ups: Sequence
) -> int:
    """Count, per pair and row: the hidden rows again, then the backward of each map.

    asked_down and each of asked_ups: flags for rule_in, rule_out, local and, where the map has one, bias. The hidden
    rows are counted unless only biases of up maps are asked. Their gradient is asked of every up map as soon as x or
    a factor of the down map is asked.
    """
    below_hidden = int(bool(asked_x) or any(asked_down))
    per_row = backward_of_stages(stages_of(*down[:3]), asked_x, *asked_down[:3])
    for up, asked in zip(ups, asked_ups):
        per_row += backward_of_stages(stages_of(*up[:3]), below_hidden, *asked[:3])
    if below_hidden or any(flag for asked in asked_ups for flag in asked[:3]):
        per_row += sum(stages_of(*down[:3]))
    return _rows_of_bank(x, down, ups, experts) * per_row


def _rows_of_bank(x: Tensor, down, ups: Sequence, experts: Tensor | None) -> int:
    num_layers, num_experts = group_sizes(x, down, ups)
    return num_layers * (num_experts if experts is None else experts.shape[0]) * x.shape[2]


def of_prompts(batch: int, sources: int, rows: int, width: int, rank: int) -> int:
    """Count ATTEMPT's two products of the attention module, the scores and the mix of sources + 1 prompts."""
    return batch * width * (2 * rank + (sources + 1) * (1 + rows))


def of_prompts_backward(
    batch: int, sources: int, rows: int, width: int, rank: int, asked: tuple[int, int, int, int, int, int]
) -> int:
    """Count the attention again, its gradient, and the products of the asked gradients.

    The count is batch * width times the sum of

        2 rank + (sources + 1)          attention, again
        (sources + 1) * rows            gradient of the attention
        sources * (1 + rows) * source   gradients of source prompts, by the scores and by the mix
        (1 + rows) * target             gradient of the target prompt, likewise
        (sources + 1) * query           gradient of the query; query is 1 for x, w_down, w_up or norm
        rank * (x + w_down + w_up)      gradients of the two products
        rank * (x or w_down)            gradient between the two products

    Args:
        batch, sources, rows, width, rank: As in of_prompts.
        asked: Flags of x, source, target, w_down, w_up and norm. norm is ln_weight or ln_bias.
    """
    if not any(asked):
        return 0
    x, source, target, w_down, w_up, norm = asked
    candidates = sources + 1
    total = 2 * rank + candidates + candidates * rows
    total += (1 + rows) * (sources * source + target)
    total += candidates * (x | w_down | w_up | norm)
    total += rank * (x + w_down + w_up + (x | w_down))
    return batch * width * total


_OF_CALL = {
    "phm_weight": (of_weight, ("rule", "local")),
    "phm_linear": (of_dense, ("x", "rule", "local")),
    "lowrank_phm_linear": (of_stages, ("x", "rule_in", "rule_out", "local")),
    "mop_ffn": (of_bank, ("x", "down", "ups")),
}


def of_call(op: str, arguments: dict) -> int:
    """Return the size of a call by which "auto" chooses. Zero where an argument is missing or nothing is chosen.

    Args:
        op: Name of a public operation. The size of attempt_mix is zero: a GPU has one backend for it.
        arguments: Arguments of the call by name.
    """
    if op not in _OF_CALL:
        return 0
    function, names = _OF_CALL[op]
    given = [arguments.get(name) for name in names]
    return 0 if any(value is None for value in given) else function(*given)
