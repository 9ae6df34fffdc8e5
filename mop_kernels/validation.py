"""Check the arguments of public functions and layers.

Raise TypeError for an object that is not a floating-point tensor, or whose dtype differs from the rest. Raise
ValueError for a wrong shape, device, size or name. Each `check_<operation>` takes the floating-point tensors of one
operation, in the order of its `Operation` (functional.py), and checks their shapes.
"""

from collections.abc import Callable, Collection, Sequence
from numbers import Integral

import torch
from torch import Tensor

from .ops import autocast_is_on
from .reference import LowRankPHM, group_sizes


def dtype_of_call(tensor: Tensor) -> torch.dtype:
    """Return the tensor's dtype, or the dtype that autocast gives it. Like F.linear, leave float64 alone."""
    dtype = tensor.dtype
    if dtype is torch.float64 or not autocast_is_on(tensor):
        return dtype
    return torch.get_autocast_dtype(tensor.device.type)


def check_kind(
    names: Sequence[str],
    tensors: Sequence[Tensor | None],
    optional: Collection[str] = (),
    dtype_of: Callable[[Tensor], torch.dtype] = dtype_of_call,
) -> torch.dtype:
    """Check that all tensors are floating point, of one dtype and on one device. Return the dtype.

    Args:
        names: One name per tensor.
        tensors: The tensors.
        optional: Last parts of the names of tensors that may be None, such as "bias" for "down.bias".
        dtype_of: dtype_of(tensor) returns the dtype that the tensor has in the call.
    """
    known: list[tuple[str, Tensor, torch.dtype]] = []
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None and name.rpartition(".")[2] in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}.")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor; got {tensor.dtype}. Cast it: {name}.float().")
        known.append((name, tensor, dtype_of(tensor)))
        (first_name, first, first_dtype), (_, _, dtype) = known[0], known[-1]
        if dtype != first_dtype:
            raise TypeError(
                f"all tensors must have one dtype; {first_name} has {first_dtype}, {name} has {dtype}. Cast one of "
                f"them{', or use torch.autocast' if dtype_of is dtype_of_call else ''}."
            )
        if tensor.device != first.device:
            raise ValueError(
                f"all tensors must be on one device; {first_name} is on {first.device}, {name} is on "
                f"{tensor.device}. Move it: {name}.to({str(first.device)!r})."
            )
    return known[0][2]


def check_dims(
    name: str,
    tensor: Tensor,
    shape: str,
    *,
    cure: str = "",
    exactly: int | None = None,
    at_least: int = 0,
    filled: int | None = None,
) -> None:
    """Check the number of dims, and that the first `filled` dims (all by default) are not empty."""
    wrong = tensor.dim() < at_least if exactly is None else tensor.dim() != exactly
    if wrong:
        advice = f" Add a dimension: {cure}." if cure else ""
        raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}.{advice}")
    if 0 in tensor.shape[:filled]:
        raise ValueError(f"{name} must have no empty dimension; got shape {tuple(tensor.shape)}.")


def check_equal(name: str, tensor: Tensor, dim: int, size: int, of: str) -> None:
    """Check the size of one dim. `of` names, in the message, the quantity that the size must equal."""
    if tensor.shape[dim] != size:
        raise ValueError(f"dim {dim} of {name} must equal the {of}, {size}; got {name} of shape {tuple(tensor.shape)}.")


def check_shape(name: str, tensor: Tensor, shape: str, sizes: tuple[int | None, ...], cure: str = "") -> None:
    """Check the whole shape. `shape` names its dims in the message."""
    if tuple(tensor.shape) != sizes:
        raise ValueError(f"{name} must have shape {shape} = {sizes}; got {tuple(tensor.shape)}.{cure}")


def check_phm_weight(rule: Tensor, local: Tensor) -> tuple[Tensor, Tensor] | None:
    """Check the shapes of phm_weight. If leading dims must broadcast, return the tensors with equal leading dims."""
    check_dims("rule", rule, "(..., terms, g_in, g_out)", at_least=3, cure="rule.unsqueeze(0)")
    check_dims("local", local, "(..., terms, loc_in, loc_out)", at_least=3, cure="local.unsqueeze(0)")
    check_equal("local", local, -3, rule.shape[-3], "terms of rule")
    if rule.shape[:-3] == local.shape[:-3]:
        return None
    try:
        groups = torch.broadcast_shapes(rule.shape[:-3], local.shape[:-3])
    except RuntimeError:
        raise ValueError(
            f"the leading dims of rule {tuple(rule.shape[:-3])} and local {tuple(local.shape[:-3])} must broadcast."
        ) from None
    # factors are small in comparison with W, so copies cost little
    return rule.expand(*groups, *rule.shape[-3:]), local.expand(*groups, *local.shape[-3:])


def check_phm_linear(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None) -> None:
    """Check the shapes of phm_linear."""
    check_dims("rule", rule, "(terms, g_in, g_out)", exactly=3, cure="rule.unsqueeze(0)")
    _check_linear(x, (rule.shape[0], rule.shape[1], rule.shape[2]), local, bias)


def check_lowrank_phm_linear(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None) -> None:
    """Check the shapes of lowrank_phm_linear."""
    check_dims("rule_in", rule_in, "(terms, g_in, rank)", exactly=3, cure="rule_in.unsqueeze(-1) for rank 1")
    check_dims("rule_out", rule_out, "(terms, rank, g_out)", exactly=3, cure="rule_out.unsqueeze(-2) for rank 1")
    check_equal("rule_out", rule_out, 0, rule_in.shape[0], "terms of rule_in")
    check_equal("rule_out", rule_out, 1, rule_in.shape[2], "rank of rule_in")
    _check_linear(x, (rule_in.shape[0], rule_in.shape[1], rule_out.shape[2]), local, bias)


def check_local_linear(x: Tensor, local: Tensor, bias: Tensor | None) -> None:
    """Check the shapes of local_linear."""
    check_dims("local", local, "(width_in, width_out)", exactly=2, cure="local[0] for one term")
    width_in, width_out = local.shape
    if x.dim() == 0 or width_in == 0 or x.shape[-1] % width_in:
        raise ValueError(
            f"the last dim of x must be a multiple of dim 0 of local, {width_in}; got x of shape {tuple(x.shape)}."
        )
    if bias is not None:
        width = x.shape[-1] // width_in * width_out
        check_shape("bias", bias, "(in / width_in * width_out,)", (width,))


def _check_linear(x: Tensor, rule_sizes: tuple[int, int, int], local: Tensor, bias: Tensor | None) -> None:
    terms, g_in, g_out = rule_sizes
    check_dims("local", local, "(terms, loc_in, loc_out)", exactly=3, cure="local.unsqueeze(0)")
    check_equal("local", local, 0, terms, "terms of the rule")
    _, loc_in, loc_out = local.shape
    if x.dim() == 0:
        raise ValueError("x must have shape (..., in); got a scalar. Add a dimension: x.unsqueeze(0).")
    if x.shape[-1] != g_in * loc_in:
        raise ValueError(
            f"the last dim of x must be g_in*loc_in = {g_in}*{loc_in} = {g_in * loc_in}; got x of shape "
            f"{tuple(x.shape)}."
        )
    if bias is not None:
        check_shape("bias", bias, "(out,) = (g_out*loc_out,)", (g_out * loc_out,))


def names_of_mop_ffn(num_tensors: int) -> list[str]:
    """Return the names of x and of the four factors per map."""
    maps = ["down", *(f"ups[{k}]" for k in range((num_tensors - 1) // 4 - 1))]
    return ["x", *(f"{name}.{field}" for name in maps for field in LowRankPHM._fields)]


def maps_of(factors: Sequence[Tensor | None]) -> list[LowRankPHM]:
    """Return a flat list, four factors per map, as one LowRankPHM per map."""
    return [LowRankPHM._make(factors[k : k + 4]) for k in range(0, len(factors), 4)]


_GROUPED = {
    "rule_in": ("(layers|1, experts|1, terms, g_in, rank)", 5),
    "rule_out": ("(layers|1, experts|1, terms, rank, g_out)", 5),
    "local": ("(layers|1, experts|1, terms, loc_in, loc_out)", 5),
    "bias": ("(layers|1, experts|1, out)", 3),
}


def check_mop_ffn(x: Tensor, *factors: Tensor | None) -> None:
    """Check the shapes of mop_ffn. `factors` holds four factors per map, the down map first."""
    tensors = dict(zip(names_of_mop_ffn(1 + len(factors)), (x, *factors)))
    present = {name: t for name, t in tensors.items() if t is not None}
    down, *ups = maps_of(factors)
    names = ["down", *(f"ups[{k}]" for k in range(len(ups)))]
    for name, t in present.items():
        if name != "x":
            shape, dims = _GROUPED[name.rpartition(".")[2]]
            check_dims(name, t, shape, exactly=dims, cure="two group dims come first, full or 1")
    for name, phm in zip(names, (down, *ups)):
        terms, _, rank = phm.rule_in.shape[2:]
        check_equal(f"{name}.local", phm.local, 2, terms, f"terms of {name}.rule_in")
        if phm.rule_out is not None:
            check_equal(f"{name}.rule_out", phm.rule_out, 2, terms, f"terms of {name}.rule_in")
            check_equal(f"{name}.rule_out", phm.rule_out, 3, rank, f"rank of {name}.rule_in")

    check_dims("x", x, "(layers|1, experts|1, n, in)", exactly=4, cure="x[None, None] for x of shape (n, in)", filled=2)
    sizes = group_sizes(x, down, ups)
    for name, t in present.items():
        for dim, (size, group) in enumerate(zip(sizes, ("layers", "experts"))):
            if t.shape[dim] not in (1, size):
                raise ValueError(
                    f"dim {dim} of {name} must be 1 or the number of {group}, {size}; got shape {tuple(t.shape)}."
                )
    rows, rows_name = x.shape[-1], "x"
    for name, phm in zip(names, (down, *ups)):
        rule_out = phm.rule_in if phm.rule_out is None else phm.rule_out
        expected, out = phm.rule_in.shape[3] * phm.local.shape[3], rule_out.shape[4] * phm.local.shape[4]
        if rows != expected:
            raise ValueError(f"the last dim of {rows_name} must be g_in*loc_in of {name}, {expected}; got {rows}.")
        if phm.bias is not None and phm.bias.shape[-1] != out:
            raise ValueError(
                f"{name}.bias must have shape (layers|1, experts|1, out) with out = {out}; got {tuple(phm.bias.shape)}."
            )
        if phm is down:
            rows, rows_name = out, "down's output"
    for name, up in zip(names[2:], ups[1:]):
        for field, *pair in zip(LowRankPHM._fields, ups[0], up):
            one, other = (None if t is None else tuple(t.shape) for t in pair)
            if one != other:
                raise ValueError(
                    f"all up maps must have equal shapes; ups[0].{field} has {one}, {name}.{field} has {other}."
                )


def check_attempt_mix(
    x: Tensor, source: Tensor, target: Tensor, w_down: Tensor, w_up: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> None:
    """Check the shapes of attempt_mix."""
    check_dims("x", x, "(batch, length, d)", exactly=3, cure="x.unsqueeze(0)", filled=0)
    check_dims("source_prompts", source, "(sources, m, d)", exactly=3, cure="source_prompts.unsqueeze(0)")
    check_dims("target_prompts", target, "(tasks, m, d)", exactly=3, cure="target_prompts.unsqueeze(0)")
    _, rows, width = source.shape
    check_equal("x", x, 2, width, "d of source_prompts")
    check_equal("target_prompts", target, 1, rows, "rows of source_prompts, m")
    check_equal("target_prompts", target, 2, width, "d of source_prompts")
    check_dims("w_down", w_down, "(d, r)", exactly=2, cure="w_down.unsqueeze(1) for r = 1")
    rank, transposed = w_down.shape[1], " The weight of an nn.Linear is its transpose: weight.T."
    check_shape("w_down", w_down, "(d, r)", (width, rank), transposed)
    check_shape("w_up", w_up, "(r, d)", (rank, width), transposed)
    check_shape("ln_weight", ln_weight, "(d,)", (width,))
    check_shape("ln_bias", ln_bias, "(d,)", (width,))


def readable_ids(ids: Tensor) -> Tensor | None:
    """Return the ids as a tensor whose values the host may read. It keeps the batch axes of torch.func.

    Return None on a GPU, where the host would have to wait for the values, and under torch.compile.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(ids):
        ids = torch._C._functorch.get_unwrapped(ids)
    return ids


def check_ids(name: str, ids: Tensor, end: int, meaning: str = "") -> Tensor | None:
    """Raise ValueError if an id lies outside 0..end-1. Return the ids if the host may read them (`readable_ids`)."""
    values = readable_ids(ids)
    if values is not None:
        bad = [i for i in values.flatten().tolist() if not 0 <= i < end]
        if bad:
            raise ValueError(f"{name} must lie in 0..{end - 1}{meaning}; got {bad[0]}.")
    return values


def check_int64(name: str, ids: Tensor, shape: str) -> None:
    """Check that the argument is an int64 tensor."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} must be an int64 tensor of shape {shape}; got {got}. Use torch.tensor([0, 2]).")


def check_positive(**sizes: int) -> None:
    """Check that every argument is a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or int(size) < 1:
            raise ValueError(f"{name} must be a positive integer; got {size!r}.")


def check_number(name: str, value: object, advice: str = "") -> None:
    """Check that the value is a number. `advice` ends the message."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number; got {type(value).__name__}.{advice}")


def check_choice(name: str, value: object, allowed: Collection) -> None:
    """Check that the value is among the allowed values."""
    if value not in tuple(allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def divided(name: str, size: int, divisor_name: str, divisor: int) -> int:
    """Return size // divisor. Raise ValueError if the divisor does not divide the size."""
    check_positive(**{name: size, divisor_name: divisor})
    if size % divisor:
        raise ValueError(f"{name} must be a multiple of {divisor_name}; got {size} and {divisor}.")
    return size // divisor
