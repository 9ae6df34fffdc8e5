"""Count the multiply-adds of each operation, from the sizes of its tensors.

Each function bears the name of an op and takes its arguments (ops.SCHEMAS). The forward counts are the size of a call:
`backends.resolve` compares them with the crossover of a GPU. torch.utils.flop_counter.FlopCounterMode counts two FLOPs
per multiply-add. Sums, activations and softmax count as zero, and so does building a W that only a dense product reads.

A backward count adds up the products that the requested gradients need. Each product is counted once. In these sums, a
variable with the name of a tensor is 1 where the gradient of this tensor is requested, and 0 elsewhere.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import backends, ops
from .reference import LowRankPHM, flags_of, group_sizes, split_maps


def phm_weight(rule: Tensor, local: Tensor) -> int:
    """Count W = sum_i rule[i] (x) local[i]: terms * in * out."""
    return rule.numel() * local.shape[-2] * local.shape[-1]


def phm_weight_backward(grad: Tensor, rule: Tensor, local: Tensor, needs: int) -> int:
    """Count one product of the size of W per requested gradient."""
    return phm_weight(rule, local) * sum(flags_of(needs, 2))


def phm_linear(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None = None) -> int:
    """Count y = x W: rows * in * out."""
    return x.numel() * rule.shape[2] * local.shape[2]


def phm_linear_backward(grad: Tensor, x: Tensor, rule: Tensor, local: Tensor, needs: int) -> int:
    """Count grad_x = grad W^T with W built again, grad_W = x^T grad once, and one product per requested factor.

    rows * in * out * (x + (rule or local)) + terms * in * out * (x + rule + local)
    """
    of_x, of_rule, of_local = flags_of(needs, 3)
    dense, weight = phm_linear(x, rule, local), phm_weight(rule, local)
    return dense * (of_x + (of_rule | of_local)) + weight * (of_x + of_rule + of_local)


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
    """Count per row t and s again where they are read, their gradients, and one product per requested gradient.

    first * (t + grad_x + grad_rule_in) + second * (s + grad_t + grad_local) + third * (grad_s + grad_rule_out)

    t is read for local and rule_out, s for rule_out, grad_t for x and rule_in, grad_s for x, rule_in and local.
    """
    first, second, third = stages
    t, s, grad_t, grad_s = local | rule_out, rule_out, x | rule_in, x | rule_in | local
    return first * (t + x + rule_in) + second * (s + grad_t + local) + third * (grad_s + rule_out)


def lowrank_phm_linear(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None = None) -> int:
    """Count the three stages on all rows of x."""
    return x.numel() // x.shape[-1] * sum(stages_of(rule_in, rule_out, local))


def lowrank_phm_linear_backward(
    grad: Tensor, x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, needs: int
) -> int:
    """Count the backward pass of the three stages on all rows of x."""
    per_row = backward_of_stages(stages_of(rule_in, rule_out, local), *flags_of(needs, 4))
    return x.numel() // x.shape[-1] * per_row


def local_linear(x: Tensor, local: Tensor, bias: Tensor | None = None) -> int:
    """Count y = x (I (x) local): rows * in * width_out."""
    return x.numel() * local.shape[1]


def local_linear_backward(grad: Tensor, x: Tensor, local: Tensor, needs: int) -> int:
    """Count one product per requested gradient of x and local."""
    return local_linear(x, local) * sum(flags_of(needs, 2))


def of_bank(x: Tensor, maps: Sequence[LowRankPHM], experts: Tensor | None = None) -> int:
    """Count the three stages of every map, per (layer, expert) pair and row. `experts` leaves those experts only."""
    per_row = [sum(stages_of(*phm[:3])) for phm in maps]
    return _rows_of_bank(x, maps, experts) * sum(per_row)


def _rows_of_bank(x: Tensor, maps: Sequence[LowRankPHM], experts: Tensor | None) -> int:
    num_layers, num_experts = group_sizes(x, maps[0], maps[1:])
    return num_layers * (num_experts if experts is None else experts.shape[0]) * x.shape[2]


def mop_ffn(
    x: Tensor, down: list[Tensor], ups: list[Tensor], num_maps: int, activation: str, experts: Tensor | None = None
) -> int:
    """Count the three stages of every map, per (layer, expert) pair and row."""
    return of_bank(x, [LowRankPHM(*down), *split_maps(ups, num_maps)], experts)


def mop_ffn_backward(
    grads: list[Tensor],
    x: Tensor,
    down: list[Tensor],
    ups: list[Tensor],
    num_maps: int,
    activation: str,
    experts: Tensor | None,
    needs: int,
) -> int:
    """Count, per pair and row: the hidden rows again, then the backward of each map.

    The hidden rows are counted unless only biases of up maps are requested. Their gradient is requested of every up map
    as soon as x or a factor of the down map is.
    """
    maps = [LowRankPHM(*down), *split_maps(ups, num_maps)]
    of_x, *of_factors = flags_of(needs, 1 + len(down) + len(ups))
    of_down, of_ups = of_factors[: len(down)], of_factors[len(down) :]
    width = len(ups) // num_maps
    below_hidden = int(any((of_x, *of_down)))
    per_row = backward_of_stages(stages_of(*maps[0][:3]), of_x, *of_down[:3])
    of_up_factors = [of_ups[k * width : k * width + 3] for k in range(num_maps)]
    for up, flags in zip(maps[1:], of_up_factors):
        per_row += backward_of_stages(stages_of(*up[:3]), below_hidden, *flags)
    if below_hidden or any(map(any, of_up_factors)):
        per_row += sum(stages_of(*maps[0][:3]))
    return _rows_of_bank(x, maps, experts) * per_row


def of_prompts(batch: int, sources: int, rows: int, width: int, rank: int) -> int:
    """Count ATTEMPT's two products of the attention module, the scores and the mix of sources + 1 prompts."""
    return batch * width * (2 * rank + (sources + 1) * (1 + rows))


def attempt_mix(
    x: Tensor, keep: Tensor | None, source: Tensor, target: Tensor, ids: Tensor | None, w_down: Tensor, *_
) -> int:
    """Count `of_prompts` of these tensors."""
    sources, rows, width = source.shape
    return of_prompts(x.shape[0], sources, rows, width, w_down.shape[1])


def attempt_mix_backward(
    grad: Tensor, grad_attention: Tensor, peak: Tensor, position: Tensor, source: Tensor, *rest
) -> int:
    """Count the attention again, its gradient, and the products of the requested gradients.

    The count is batch * width times the sum of

        2 rank + (sources + 1)          attention, again
        (sources + 1) * rows            gradient of the attention
        sources * (1 + rows) * source   gradients of source prompts, by the scores and by the mix
        (1 + rows) * target             gradient of the target prompt, likewise
        (sources + 1) * query           gradient of the query; query is 1 for x, w_down, w_up, ln_weight or ln_bias
        rank * (x + w_down + w_up)      gradients of the two products
        rank * (x or w_down)            gradient between the two products
    """
    _target, _task_ids, w_down, *_, needs = rest
    if not needs:
        return 0
    of_x, of_source, of_target, of_down, of_up, *of_norm = flags_of(needs, 7)
    (sources, rows, width), rank = source.shape, w_down.shape[1]
    candidates = sources + 1
    total = 2 * rank + candidates + candidates * rows
    total += (1 + rows) * (sources * of_source + of_target)
    total += candidates * int(any((of_x, of_down, of_up, *of_norm)))
    total += rank * (of_x + of_down + of_up + (of_x | of_down))
    return peak.shape[0] * width * total


def _of_scores(query: Tensor, key: Tensor, prefix_key: Tensor | None) -> int:
    """Count one product of the size of the scores, in the layout of the op: (b, tokens, h, d)."""
    prefix = 0 if prefix_key is None else prefix_key.shape[2]
    return query.numel() * (key.shape[1] + prefix)


def prefix_attention(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor | None = None, *rest) -> int:
    """Count the scores and the weighted sum. Products that the mask leaves out are counted, too."""
    return 2 * _of_scores(query, key, prefix_key)


def prefix_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor | None, *rest
) -> int:
    """Count the scores again, the gradient of the weights, and one product per requested gradient.

    The gradients of prefixes are the first columns of the gradients of keys and values: part / all of the columns.
    """
    needs = rest[-1]
    of_query, of_key, of_value, of_prefix_key, of_prefix_value = flags_of(needs, 5)
    every, tokens = _of_scores(query, key, prefix_key), _of_scores(query, key, None)
    total = every * (2 + of_query) if needs else 0
    return total + tokens * (of_key + of_value) + (every - tokens) * (of_prefix_key + of_prefix_value)


def linear_cross_entropy(x: Tensor, weight: Tensor, *rest) -> int:
    """Count the logits and the gradient of x."""
    return 2 * x.numel() * weight.shape[0]


_WITHOUT_PRODUCTS = ("rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout")
_COUNTS: dict[str, Callable[..., int]] = {
    **dict.fromkeys((*_WITHOUT_PRODUCTS, "linear_cross_entropy_backward"), lambda *args: 0),
    **dict.fromkeys((f"{name}_backward" for name in _WITHOUT_PRODUCTS), lambda *args: 0),
}
_COUNTS |= {name: globals()[name] for name in ops.SCHEMAS if name not in _COUNTS}
_ARGUMENTS = {
    "phm_weight": ("rule", "local"),
    "phm_linear": ("x", "rule", "local"),
    "lowrank_phm_linear": ("x", "rule_in", "rule_out", "local"),
    "mop_ffn": ("x", "down", "ups"),
}


def of_call(op: str, arguments: Mapping) -> int:
    """Return the size of a call by which "auto" chooses. Zero where an argument is missing or nothing is chosen.

    Args:
        op: Name of a public operation. The size is zero for an operation that has one backend on a GPU.
        arguments: Arguments of the call by name.
    """
    given = [arguments[name] for name in _ARGUMENTS.get(op, ()) if arguments.get(name) is not None]
    if op not in _ARGUMENTS or len(given) < len(_ARGUMENTS[op]):
        return 0
    if op == "mop_ffn":
        x, down, ups = given
        experts = arguments.get("experts")
        return of_bank(x, (down, *ups), experts if isinstance(experts, Tensor) and experts.dim() == 1 else None)
    return _COUNTS[op](*given)


# torch's FLOP counter counts two per multiply-add, the same for every backend. It does not look inside an op of this
# package, so nothing is counted twice. It copies its registry when it is constructed: import mop_kernels before that.
# torch.utils.flop_counter is slow to import (torch 2.13 imports triton there). So the counts are not registered when
# mop_kernels is imported, but as soon as somebody imports torch.utils.flop_counter.

_COUNTER = "torch.utils.flop_counter"


def _register(flop_counter: ModuleType) -> None:
    """Register the formula of every op that is defined in this process."""
    for name, count in _COUNTS.items():
        defined = [b for b in backends.NAMES if ops.is_defined(name, b)]
        packets = [getattr(torch.ops.mop_kernels, f"{name}_{backend}") for backend in defined]

        def formula(*args, count: Callable[..., int] = count, out_val: object = None, **kwargs) -> int:
            return 2 * count(*args, **kwargs)

        flop_counter.register_flop_formula(packets, get_raw=True)(formula)


class _AfterCounterIsImported(importlib.abc.MetaPathFinder):
    """Leave the search for torch's FLOP counter to the other finders, and register the formulas after it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register(module)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]  # this loader alone, once
        return spec


def serve_flop_counter() -> None:
    """Register all formulas, now or when torch's FLOP counter is imported. Call this once all ops are defined."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterCounterIsImported())
