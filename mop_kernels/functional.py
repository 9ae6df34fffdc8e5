"""The public operations on PHM maps: validate (here, for every backend alike), choose the backend, differentiate.

Errors: TypeError for something that is no tensor, no floating-point tensor, or of another dtype than the rest;
ValueError for a shape, a device or a name; RuntimeError for a backend that cannot run here.

DTensors are taken too: sharding.py calls the operation on their local parts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from . import backends, multiply_adds
from .attempt import attempt_mix
from .autograd import MOST_GRADIENTS, operation, transforms_are_active
from .ops import expert_rows
from .reference import ACTIVATIONS, group_sizes
from .rules import Call
from .sharding import is_distributed, on_local_parts
from .validation import check_dims, check_equal, check_ids, dtype_of_call, readable_ids, same_kind


class LowRankPHM(NamedTuple):
    """The factors of one PHM map of `mop_ffn`, each with two leading group dims (layers or 1, experts or 1).

    rule_in (., ., terms, g_in, rank), rule_out (., ., terms, rank, g_out), local (., ., terms, loc_in, loc_out),
    bias (., ., out) or None. A full rule: rule_in (., ., terms, g_in, g_out) and rule_out None.
    """

    rule_in: Tensor
    rule_out: Tensor | None
    local: Tensor
    bias: Tensor | None = None


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
    shapes = _shapes_of("phm_weight", rule, local)
    size = _passed.get(shapes)
    if size is None:
        if is_distributed(rule, local):
            return on_local_parts(phm_weight, {"rule": rule, "local": local}, {"backend": backend}, by_row=())
        rule, local = same_kind({"rule": rule, "local": local})
        check_dims("rule", rule, "(..., terms, g_in, g_out)", at_least=3, cure="rule.unsqueeze(0)")
        check_dims("local", local, "(..., terms, loc_in, loc_out)", at_least=3, cure="local.unsqueeze(0)")
        check_equal("local", local, -3, rule.shape[-3], "terms of rule")
        if rule.shape[:-3] != local.shape[:-3]:
            try:
                groups = torch.broadcast_shapes(rule.shape[:-3], local.shape[:-3])
            except RuntimeError:
                raise ValueError(
                    f"the leading dims of rule {tuple(rule.shape[:-3])} and local {tuple(local.shape[:-3])} must "
                    "broadcast."
                ) from None
            rule, local = (t.expand(*groups, *t.shape[-3:]) for t in (rule, local))  # factors are small beside W
            shapes = None  # the next such call must expand, too
        size = _remember(shapes, multiply_adds.of_weight(rule, local))
    backend = backends.resolve(backend, rule.device, rule.dtype, "phm_weight", size)
    return operation(Call("phm_weight", backend), rule, local)[0]


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
    shapes = _shapes_of("phm_linear", x, rule, local, bias)
    size = _passed.get(shapes)
    if size is None:
        arguments = {"x": x, "rule": rule, "local": local, "bias": bias}
        if is_distributed(x, rule, local, bias):
            return on_local_parts(phm_linear, arguments, {"backend": backend})
        x, rule, local, bias = same_kind(arguments)
        check_dims("rule", rule, "(terms, g_in, g_out)", exactly=3, cure="rule.unsqueeze(0)")
        _check_linear(x, *rule.shape, local, bias)
        size = _remember(shapes, multiply_adds.of_dense(x, rule, local))
    backend = backends.resolve(backend, x.device, x.dtype, "phm_linear", size)
    return operation(Call("phm_linear", backend), x, rule, local, bias)[0]


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
    shapes = _shapes_of("lowrank_phm_linear", x, rule_in, rule_out, local, bias)
    size = _passed.get(shapes)
    if size is None:
        arguments = {"x": x, "rule_in": rule_in, "rule_out": rule_out, "local": local, "bias": bias}
        if is_distributed(x, rule_in, rule_out, local, bias):
            return on_local_parts(lowrank_phm_linear, arguments, {"backend": backend})
        x, rule_in, rule_out, local, bias = same_kind(arguments)
        check_dims("rule_in", rule_in, "(terms, g_in, rank)", exactly=3, cure="rule_in.unsqueeze(-1) for rank 1")
        check_dims("rule_out", rule_out, "(terms, rank, g_out)", exactly=3, cure="rule_out.unsqueeze(-2) for rank 1")
        check_equal("rule_out", rule_out, 0, rule_in.shape[0], "terms of rule_in")
        check_equal("rule_out", rule_out, 1, rule_in.shape[2], "rank of rule_in")
        _check_linear(x, rule_in.shape[0], rule_in.shape[1], rule_out.shape[2], local, bias)
        size = _remember(shapes, multiply_adds.of_stages(x, rule_in, rule_out, local))
    backend = backends.resolve(backend, x.device, x.dtype, "lowrank_phm_linear", size)
    return operation(Call("lowrank_phm_linear", backend), x, rule_in, rule_out, local, bias)[0]


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
        row_gradients: Give the gradients of tensors with an experts dim as sparse tensors (layers, experts, ...) that
            hold the rows of `experts` only, as nn.Embedding(sparse=True) does, for SparseAdam or a thousand experts.
            False: the gradients of the other experts are zero.
        backend: "reference", "cpu", "triton", "cuda", or None for the automatic choice.

    Returns:
        One (layers, experts or k, n, out) tensor per up map.

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A shape, a device or an expert does not fit, or a name is unknown.
        RuntimeError: `backend` cannot run here, or row_gradients meets torch.func or forward mode.
    """
    tensors = _tensors_of_maps(x, down, ups, activation)
    shapes = None if tensors is None else _shapes_of(activation, *tensors)
    size = _passed.get(shapes)
    if size is None:
        if is_distributed(x, down, ups):
            if row_gradients:
                raise ValueError("row_gradients must be False for DTensors, whose gradients are dense; got True.")
            arguments = {"x": x, "down": down, "ups": ups, "experts": experts}
            return on_local_parts(mop_ffn, arguments, {"activation": activation, "backend": backend}, row_dims=(2,))
        # row_gradients: cast after the selection, because a sparse gradient cannot pass the backward of a cast
        x, down, ups = _check_mop_ffn(x, down, ups, activation, cast=experts is None or not row_gradients)
        size = _remember(shapes, multiply_adds.of_bank(x, down, ups))
    if experts is not None:
        num_experts = group_sizes(x, down, ups)[1]
        experts = _check_experts(experts, num_experts, x.device)
        size = size // num_experts * experts.shape[0]
        if row_gradients:
            if not torch.compiler.is_compiling() and transforms_are_active():
                raise RuntimeError(
                    "row_gradients=True gives sparse gradients, which torch.func and forward mode cannot transform. "
                    "Pass row_gradients=False."
                )
            x, down, ups, experts = _select_rows(x, down, ups, experts, num_experts)
    backend = backends.resolve(backend, x.device, x.dtype, "mop_ffn", size)
    down, ups = _as_low_rank(down), [_as_low_rank(up) for up in ups]
    factors = [t for phm in (down, *ups) for t in phm if t is not None]
    if len(factors) >= MOST_GRADIENTS and torch.is_grad_enabled() and any(t.requires_grad for t in (x, *factors)):
        raise ValueError(
            f"ups has {len(ups)} maps, {len(factors) + 1} tensors in all with x and down; gradients are given for at "
            f"most {MOST_GRADIENTS}: 14 up maps with biases, 19 without. Split ups over two calls."
        )
    num_down = 3 if down.bias is None else 4
    return operation(Call("mop_ffn", backend, (num_down, len(ups), activation)), x, *factors, experts)


OPERATIONS = {f.__name__: f for f in (phm_weight, phm_linear, lowrank_phm_linear, mop_ffn, attempt_mix)}


def _check_linear(x: Tensor, terms: int, g_in: int, g_out: int, local: Tensor, bias: Tensor | None) -> None:
    check_dims("local", local, "(terms, loc_in, loc_out)", exactly=3, cure="local.unsqueeze(0)")
    check_equal("local", local, 0, terms, "terms of the rule")
    _, loc_in, loc_out = local.shape
    if x.dim() == 0:
        raise ValueError("x must have shape (..., in); got a scalar. Add a dimension: x.unsqueeze(0).")
    expected_in = g_in * loc_in
    if x.shape[-1] != expected_in:
        raise ValueError(
            f"the last dim of x must be g_in*loc_in = {g_in}*{loc_in} = {expected_in}; got x of shape {tuple(x.shape)}."
        )
    expected_out = g_out * loc_out
    if bias is not None and tuple(bias.shape) != (expected_out,):
        raise ValueError(
            f"bias must have shape (out,) = (g_out*loc_out,) = ({expected_out},); got {tuple(bias.shape)}."
        )


_MOST_PASSED = 1000
_PLAIN = {Tensor, Parameter}  # not a fake tensor, whose sizes may be symbols
_passed: dict[tuple | None, int] = {}  # the multiply-adds of calls that passed the checks, by their shapes


def _shapes_of(what: str, first: Tensor, *others: Tensor | None) -> tuple | None:
    """Return the key in `_passed` of a call whose tensors need no cast and are all of one kind, None of any other call.

    An operation is called with the same shapes again and again, and looking at each shape takes longer than a GPU takes
    to compute a small call: shapes that passed once are only compared.
    """
    if type(first) not in _PLAIN or torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
        return None
    if torch._C._get_tracing_state() is not None:  # sizes are tensors then
        return None
    dtype, on_cpu = first.dtype, first.is_cpu
    device = None if on_cpu else first.device  # two devices take a while to compare
    key = [what, dtype.is_floating_point, first.shape]
    for t in others:
        if t is None:
            key.append(None)
        elif type(t) in _PLAIN and t.dtype is dtype and (t.is_cpu if on_cpu else t.device == device):
            key.append(t.shape)
        else:
            return None
    return tuple(key)


def _tensors_of_maps(x, down, ups, activation) -> list[Tensor | None] | None:
    """Return the tensors of a call of mop_ffn, None where its arguments are of other types than documented."""
    if not isinstance(ups, (list, tuple)) or not isinstance(activation, str):
        return None
    tensors = [x]
    for phm in (down, *ups):
        if not isinstance(phm, LowRankPHM):
            return None
        tensors += phm
    return tensors


def _remember(shapes: tuple | None, size: int) -> int:
    """Note that these shapes passed the checks, and return their size."""
    if shapes is not None:
        if len(_passed) == _MOST_PASSED:
            _passed.clear()
        _passed[shapes] = size
    return size


def _select_rows(x, down, ups, experts: Tensor, num_experts: int):
    """Replace every tensor that has an experts dim by its rows of `experts`, and cast all tensors for the call.

    Returns:
        x, down, ups and the experts that the backend has to select from them, None for all.
    """
    empty = experts.shape[0] == 0

    def select(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if tensor.shape[1] == num_experts > 1:
            tensor = expert_rows(tensor, experts)
            if empty:  # two rows that nothing selects: no backend takes an empty dim, and one row would be shared
                tensor = torch.cat([tensor, tensor.new_zeros(tensor.shape[0], 2, *tensor.shape[2:])], 1)
        return tensor.to(dtype_of_call(tensor))

    maps = [LowRankPHM(*map(select, phm)) for phm in (down, *ups)]
    return select(x), maps[0], maps[1:], experts if empty or num_experts == 1 else None


def _check_mop_ffn(x, down, ups, activation, cast: bool):
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}; got {activation!r}.")
    down = _as_phm("down", down)
    if isinstance(ups, LowRankPHM) or not isinstance(ups, Sequence) or len(ups) == 0:
        raise TypeError("ups must be a non-empty sequence of LowRankPHM, one an up map. For a single map: ups=[up].")
    ups = [_as_phm(f"ups[{k}]", up) for k, up in enumerate(ups)]
    names = ["down"] + [f"ups[{k}]" for k in range(len(ups))]
    maps = [down, *ups]

    tensors = {"x": x}
    for name, phm in zip(names, maps):
        for field, tensor in zip(LowRankPHM._fields, phm):
            if tensor is not None or field in ("rule_in", "local"):  # those two are never optional
                tensors[f"{name}.{field}"] = tensor
    tensors = dict(zip(tensors, same_kind(tensors, cast=cast)))
    x = tensors["x"]
    maps = [LowRankPHM(*(tensors.get(f"{name}.{field}") for field in LowRankPHM._fields)) for name in names]
    for name, phm in zip(names, maps):
        _check_factors(name, phm)

    cure = "x[None, None] for x of shape (n, in)"
    check_dims("x", x, "(layers|1, experts|1, n, in)", exactly=4, cure=cure, filled=2)
    num_layers, num_experts = group_sizes(x, maps[0], maps[1:])
    for name, tensor in tensors.items():
        for dim, size, group in ((0, num_layers, "layers"), (1, num_experts, "experts")):
            if tensor.shape[dim] not in (1, size):
                raise ValueError(
                    f"dim {dim} of {name} must be 1 or the number of {group}, {size}; got shape {tuple(tensor.shape)}."
                )
    for name, phm, rows_name, rows in [(names[0], maps[0], "x", x.shape[-1])] + [
        (name, phm, "down's output", _sides(maps[0])[1]) for name, phm in zip(names[1:], maps[1:])
    ]:
        expected_in, expected_out = _sides(phm)
        if rows != expected_in:
            raise ValueError(f"the last dim of {rows_name} must be g_in*loc_in of {name}, {expected_in}; got {rows}.")
        if phm.bias is not None and phm.bias.shape[-1] != expected_out:
            raise ValueError(
                f"{name}.bias must have shape (layers|1, experts|1, out) with out = {expected_out}; got "
                f"{tuple(phm.bias.shape)}."
            )
    for name, up in zip(names[2:], maps[2:]):
        for field, one, other in zip(LowRankPHM._fields, maps[1], up):
            shapes = [None if t is None else tuple(t.shape) for t in (one, other)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"all up maps must have equal shapes; ups[0].{field} has {shapes[0]}, {name}.{field} {shapes[1]}."
                )
    return x, maps[0], maps[1:]


def _as_phm(name: str, phm) -> LowRankPHM:
    if not isinstance(phm, tuple) or len(phm) not in (3, 4):
        raise TypeError(f"{name} must be a LowRankPHM(rule_in, rule_out, local, bias=None); got {type(phm).__name__}.")
    return LowRankPHM(*phm)


def _check_factors(name: str, phm: LowRankPHM) -> None:
    group = "(layers|1, experts|1, "
    shapes = {
        "rule_in": (group + "terms, g_in, rank)", 5),
        "rule_out": (group + "terms, rank, g_out)", 5),
        "local": (group + "terms, loc_in, loc_out)", 5),
        "bias": (group + "out)", 3),
    }
    for field, tensor in phm._asdict().items():
        if tensor is not None:
            shape, dims = shapes[field]
            check_dims(f"{name}.{field}", tensor, shape, exactly=dims, cure="two group dims come first, full or 1")
    check_equal(f"{name}.local", phm.local, 2, phm.rule_in.shape[2], f"terms of {name}.rule_in")
    if phm.rule_out is not None:
        check_equal(f"{name}.rule_out", phm.rule_out, 2, phm.rule_in.shape[2], f"terms of {name}.rule_in")
        check_equal(f"{name}.rule_out", phm.rule_out, 3, phm.rule_in.shape[4], f"rank of {name}.rule_in")


def _sides(phm: LowRankPHM) -> tuple[int, int]:
    rule_out = phm.rule_in if phm.rule_out is None else phm.rule_out
    return phm.rule_in.shape[3] * phm.local.shape[3], rule_out.shape[4] * phm.local.shape[4]


def _check_experts(experts: Tensor, num_experts: int, device: torch.device) -> Tensor:
    if not isinstance(experts, Tensor) or experts.dtype != torch.int64:
        got = experts.dtype if isinstance(experts, Tensor) else type(experts).__name__
        raise TypeError(f"experts must be an int64 tensor of shape (k,); got {got}. Use torch.tensor([0, 2]).")
    if experts.dim() != 1:
        raise ValueError(f"experts must have shape (k,); got {tuple(experts.shape)}.")
    experts = experts.to(device)
    check_ids("experts", experts, num_experts)
    values = readable_ids(experts)
    ids = values.tolist() if values is not None and values.dim() == 1 else []
    if len(set(ids)) != len(ids):
        raise ValueError(f"experts must be distinct; got {ids}. Use experts.unique().")
    return experts.contiguous()


def _as_low_rank(phm: LowRankPHM) -> LowRankPHM:
    """A full rule as the exact low-rank one: the identity, which asks for no gradient, stands on its smaller side."""
    if phm.rule_out is not None:
        return phm
    terms, g_in, g_out = phm.rule_in.shape[2:]
    side = min(g_in, g_out)
    identity = torch.eye(side, dtype=phm.rule_in.dtype, device=phm.rule_in.device).expand(1, 1, terms, side, side)
    if g_out <= g_in:
        return phm._replace(rule_out=identity)
    return phm._replace(rule_in=identity, rule_out=phm.rule_in)
