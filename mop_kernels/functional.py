"""The public operations on PHM maps and on ATTEMPT's prompts, differentiable and for every backend (operation.py).

Raise TypeError for an object that is not a floating-point tensor, or whose dtype differs from the rest. Raise
ValueError for a wrong shape, device or name, and RuntimeError for a backend that cannot run here. The operations also
take DTensors (sharding.py).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import multiply_adds, validation
from .autograd import MOST_GRADIENTS, transforms_are_active
from .experts import select_rows
from .operation import Operation, Prepared, run
from .reference import ACTIVATIONS, LowRankPHM
from .sharding import is_distributed
from .validation import check_choice, check_ids, check_int64, check_number, maps_of, names_of_mop_ffn


def phm_weight(rule: Tensor, local: Tensor, *, backend: str | None = None) -> Tensor:
    """Build the dense weight W = sum_i rule[i] (x) local[i] (MOP Eq. 2; Compacter).

    Sums are accumulated in float32 or better. Differentiable any number of times in both tensors. A second derivative
    in both takes about 11 times as long as the forward pass.

    Args:
        rule: (..., terms, g_in, g_out).
        local: (..., terms, loc_in, loc_out). Leading dims broadcast.
        backend: "reference", "cpu", "triton", "cuda", or None for the automatic choice.

    Returns:
        W (..., g_in*loc_in, g_out*loc_out).

    Raises:
        TypeError: An argument is no floating-point tensor, or dtypes differ.
        ValueError: A shape or a device does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    return run(_PHM_WEIGHT, backend, (rule, local))[0]


def phm_linear(
    x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Compute y = x W + bias with W = sum_i rule[i] (x) local[i] (MOP Eq. 2; Compacter's PHM layer).

    Sums are accumulated in float32 or better. Differentiable any number of times in all tensors. A second derivative in
    all of them takes about 10 times as long as the forward pass.

    Args:
        x: (..., in) with in = g_in*loc_in.
        rule: (terms, g_in, g_out).
        local: (terms, loc_in, loc_out).
        bias: (out,) with out = g_out*loc_out, or None.
        backend: "reference", "cpu", "triton", "cuda", or None for the automatic choice.

    Returns:
        y (..., out).

    Raises:
        TypeError: An argument is no floating-point tensor, or dtypes differ.
        ValueError: A shape or a device does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    return run(_PHM_LINEAR, backend, (x, rule, local, bias))[0]


def lowrank_phm_linear(
    x: Tensor,
    rule_in: Tensor,
    rule_out: Tensor,
    local: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Compute y = x W + bias with W = sum_i (rule_in[i] @ rule_out[i]) (x) local[i] (MOP Eqs. 2, 3); W is not built.

    Sums are accumulated in float32 or better. Differentiable any number of times in all tensors. A second derivative in
    all of them takes about 20 times as long as the forward pass.

    Args:
        x: (..., in) with in = g_in*loc_in.
        rule_in: (terms, g_in, rank). The rank may exceed min(g_in, g_out).
        rule_out: (terms, rank, g_out).
        local: (terms, loc_in, loc_out).
        bias: (out,) with out = g_out*loc_out, or None.
        backend: "reference", "cpu", "triton", "cuda", or None for the automatic choice.

    Returns:
        y (..., out).

    Raises:
        TypeError: An argument is no floating-point tensor, or dtypes differ.
        ValueError: A shape or a device does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    return run(_LOWRANK_PHM_LINEAR, backend, (x, rule_in, rule_out, local, bias))[0]


def local_linear(x: Tensor, local: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Compute y = x (I (x) local) + bias, for the half of a low-rank local, whose one side is narrow.

    On a CPU this is faster than BLAS libraries, which are made for wide products. On a GPU it is one product of BLAS.

    Args:
        x: (..., groups*width_in).
        local: (width_in, width_out).
        bias: (groups*width_out,), or None.
        backend: "reference", "cpu", "triton", "cuda", or None for the automatic choice.

    Returns:
        y (..., groups*width_out).

    Raises:
        TypeError: An argument is no floating-point tensor, or dtypes differ.
        ValueError: A shape or a device does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    return run(_LOCAL_LINEAR, backend, (x, local, bias))[0]


def mop_ffn(
    x: Tensor,
    down: LowRankPHM,
    ups: Sequence[LowRankPHM],
    *,
    activation: str = "relu",
    experts: Tensor | None = None,
    row_gradients: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """Compute the MOP generator for all (layer, expert) pairs and all up maps in one call (MOP Eqs. 1 to 4).

    Hidden rows are recomputed in backward. Differentiable any number of times in x and all factors. A second derivative
    in all of them takes about 22 times as long as the forward pass.

    Args:
        x: (layers|1, experts|1, n, in).
        down: LowRankPHM in -> mid.
        ups: LowRankPHMs mid -> out of equal shapes, which share the hidden rows.
        activation: One of relu, gelu (erf), gelu_tanh, tanh, silu, identity.
        experts: int64 (k,), distinct: compute only these experts, in this order. None: all.
        row_gradients: Return the gradients of tensors with an experts dim as sparse tensors (layers, experts, ...) that
            hold only the rows of `experts`, as nn.Embedding(sparse=True) does. This serves SparseAdam, or a thousand
            experts. False: the gradients are dense, and zero for the other experts.
        backend: "reference", "cpu", "triton", "cuda", or None for the automatic choice.

    Returns:
        One (layers, experts or k, n, out) tensor per up map.

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A shape, a device or an expert does not fit, or a name is unknown.
        RuntimeError: `backend` cannot run here, or row_gradients meets torch.func or forward mode.
    """
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        check_choice("activation", activation, ACTIVATIONS)
    tensors = _tensors_of_mop_ffn(x, down, ups)
    if row_gradients and is_distributed(tensors):
        raise ValueError("row_gradients must be False for DTensors, whose gradients are dense; got True.")
    # row_gradients: cast after the selection, because a sparse gradient cannot pass the backward of a cast
    cast = experts is None or not row_gradients
    return run(_MOP_FFN, backend, tensors, (experts,), (activation, row_gradients), cast)


def attempt_mix(
    x: Tensor,
    mask: Tensor | None,
    source_prompts: Tensor,
    target_prompts: Tensor,
    task_ids: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    temperature: float,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Put ATTEMPT's prompt of each example in front of its embeddings (ATTEMPT, section 3).

        h = LayerNorm(SiLU(max(x) w_down) w_up)     attention = softmax_j(max(P_j) . h / temperature)
        prefixed = [P_target + sum_j attention_j P_j ; x]

    max(x) is taken per column, over the positions that the mask keeps. max(P_j) is taken per column, over the m rows.
    Of equal numbers the first is the largest, and only its position gets the gradient. NaN is larger than all numbers.
    If the mask keeps no position, max(x) is 0 and has no gradient. The LayerNorm has eps 1e-5. Sums are in float32 or
    better. Differentiable any number of times in all floating-point tensors, through both results. A second
    derivative in all of them takes about 8 times as long as the forward pass.

    Args:
        x: Embeddings (batch, length, d).
        mask: (batch, length), bool or integers, nonzero where x counts. None: all of x counts, as in the released code.
        source_prompts: P_j (sources, m, d).
        target_prompts: (tasks, m, d).
        task_ids: int64 (batch,). The kernels read them on the device. On a CPU they are checked before.
        w_down: (d, r).
        w_up: (r, d).
        ln_weight: (d,).
        ln_bias: (d,).
        temperature: A positive number.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        prefixed (batch, m + length, d), and attention (batch, sources + 1), the target's own candidate last.

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A shape, a device, a task id or the temperature does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    tensors = (x, source_prompts, target_prompts, w_down, w_up, ln_weight, ln_bias)
    prefixed, attention, _, _ = run(_ATTEMPT_MIX, backend, tensors, (mask, task_ids), (temperature,))
    return prefixed, attention


OPERATIONS = {f.__name__: f for f in (phm_weight, phm_linear, lowrank_phm_linear, mop_ffn, attempt_mix)}


def _tensors_of_mop_ffn(x: Tensor, down: LowRankPHM, ups: Sequence[LowRankPHM]) -> list[Tensor | None]:
    """Return x and four factors per map."""
    if isinstance(ups, LowRankPHM) or not isinstance(ups, (list, tuple, Sequence)) or not ups:
        raise TypeError("ups must be a non-empty sequence with one LowRankPHM per up map. For a single map: ups=[up].")
    tensors: list[Tensor | None] = [x]
    for k, phm in enumerate((down, *ups)):
        if type(phm) is not LowRankPHM:
            if not isinstance(phm, tuple) or len(phm) not in (3, 4):
                name, got = f"ups[{k - 1}]" if k else "down", type(phm).__name__
                raise TypeError(f"{name} must be a LowRankPHM(rule_in, rule_out, local, bias=None); got {got}.")
            phm = LowRankPHM(*phm)
        tensors += phm
    return tensors


def _prepare_mop_ffn(tensors: Sequence, others: Sequence, settings: tuple, multiply_adds: int) -> Prepared:
    """Select the experts, and make full rules low-rank."""
    (experts,), (activation, row_gradients) = others, settings
    if experts is not None:
        num_experts = max(t.shape[1] for t in tensors if t is not None)
        experts = _check_experts(experts, num_experts, tensors[0].device)
        multiply_adds = multiply_adds // num_experts * experts.shape[0]
        if row_gradients:
            if not torch.compiler.is_compiling() and transforms_are_active():
                raise RuntimeError(
                    "row_gradients=True gives sparse gradients, which torch.func and forward mode cannot transform. "
                    "Pass row_gradients=False."
                )
            tensors, experts = select_rows(tensors, experts, num_experts)
    given = [tensors[0]]
    for k in range(1, len(tensors), 4):
        rule_in, rule_out, local, bias = tensors[k : k + 4]
        if rule_out is None:
            rule_in, rule_out = _as_low_rank(rule_in)
        given += (rule_in, rule_out, local) if bias is None else (rule_in, rule_out, local, bias)
    num_maps = len(tensors) // 4 - 1
    if len(given) > MOST_GRADIENTS and torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise ValueError(
            f"ups has {num_maps} maps, {len(given)} tensors in all with x and down; gradients are given for at most "
            f"{MOST_GRADIENTS}: 14 up maps with biases, 19 without. Split ups over two calls."
        )
    num_down = 3 if tensors[4] is None else 4
    return (*given, experts), (num_down, num_maps, activation), multiply_adds


def _as_low_rank(rule: Tensor) -> tuple[Tensor, Tensor]:
    """Return rule_in and rule_out whose product is the full rule. The smaller side is a constant identity."""
    terms, g_in, g_out = rule.shape[2:]
    side = min(g_in, g_out)
    identity = torch.eye(side, dtype=rule.dtype, device=rule.device).expand(1, 1, terms, side, side)
    return (rule, identity) if g_out <= g_in else (identity, rule)


def _check_experts(experts: Tensor, num_experts: int, device: torch.device) -> Tensor:
    check_int64("experts", experts, "(k,)")
    if experts.dim() != 1:
        raise ValueError(f"experts must have shape (k,); got {tuple(experts.shape)}.")
    experts = experts.to(device)
    values = check_ids("experts", experts, num_experts)
    ids = values.tolist() if values is not None and values.dim() == 1 else []
    if len(set(ids)) != len(ids):
        raise ValueError(f"experts must be distinct; got {ids}. Use experts.unique().")
    return experts.contiguous()


def _prepare_attempt_mix(tensors: Sequence, others: Sequence, settings: tuple, multiply_adds: int) -> Prepared:
    """Check mask, task ids and temperature."""
    (x, source, target, *factors), (mask, task_ids), (temperature,) = tensors, others, settings
    batch, length = x.shape[:2]
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor or None; got {type(mask).__name__}.")
        if mask.is_floating_point() or mask.is_complex():
            raise TypeError(f"mask must be a bool or integer tensor; got {mask.dtype}. Use mask != 0.")
        if mask.shape != (batch, length):
            raise ValueError(
                f"mask must have shape (batch, length) = {(batch, length)}, as x has; got {tuple(mask.shape)}."
            )
        mask = mask.to(x.device, torch.bool)
    check_int64("task_ids", task_ids, "(batch,)")
    if task_ids.shape != (batch,):
        raise ValueError(
            f"task_ids must have shape (batch,) = ({batch},), with one id per example; got {tuple(task_ids.shape)}. "
            f"One task for all: task_ids.expand({batch})."
        )
    task_ids = task_ids.to(x.device)
    check_ids("task_ids", task_ids, target.shape[0], ", the rows of target_prompts")
    check_number("temperature", temperature, " The paper's is d * math.e.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite; got {temperature}. The paper's is d * math.e.")
    return (x, mask, source, target, task_ids, *factors), (float(temperature), length), multiply_adds


_PHM_WEIGHT = Operation("phm_weight", ("rule", "local"), validation.check_phm_weight, multiply_adds.phm_weight)
_PHM_LINEAR = Operation(
    "phm_linear", ("x", "rule", "local", "bias"), validation.check_phm_linear, multiply_adds.phm_linear
)
_LOWRANK_PHM_LINEAR = Operation(
    "lowrank_phm_linear",
    ("x", "rule_in", "rule_out", "local", "bias"),
    validation.check_lowrank_phm_linear,
    multiply_adds.lowrank_phm_linear,
)
_LOCAL_LINEAR = Operation("local_linear", ("x", "local", "bias"), validation.check_local_linear)
_MOP_FFN = Operation(
    "mop_ffn",
    names_of_mop_ffn,
    validation.check_mop_ffn,
    lambda x, *factors: multiply_adds.of_bank(x, maps_of(factors)),
    _prepare_mop_ffn,
    optional=("rule_out", "bias"),
    others=("experts",),
    row_dims=(2,),
)
_ATTEMPT_MIX = Operation(
    "attempt_mix",
    ("x", "source_prompts", "target_prompts", "w_down", "w_up", "ln_weight", "ln_bias"),
    validation.check_attempt_mix,
    prepare=_prepare_attempt_mix,
    others=("mask", "task_ids"),
    by_row=("x", "mask", "task_ids"),
    row_dims=(0,),
)
