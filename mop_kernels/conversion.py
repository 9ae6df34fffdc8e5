"""Make PHMLinear layers out of a model's dense layers, and of checkpoints of Compacter and of adapters."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate

from torch import Tensor, nn

from .initialisation import INITS
from .layers import PHMLinear
from .validation import check_choice, check_dims, check_kind, check_shape, divided

_NAMES_SHOWN = 8


def replace_linears(
    module: nn.Module,
    pattern: str | re.Pattern[str],
    terms: int = 4,
    rank: int | None = None,
    local_rank: int | None = None,
    *,
    init: str = "fit",
) -> list[str]:
    """Replace, in place, every nn.Linear of `module` whose qualified name matches by a PHMLinear.

    A new layer takes the device, dtype and mode of the old one. Its parameters require gradients. A layer may stand at
    several places: if one of its names matches, one new layer replaces it at all places.

    A PHMLinear has no `weight`. Code that reads it fails, as T5's feed-forward does for its `wo`. Subclasses of
    nn.Linear are left alone, because other code mostly reads their weight (nn.MultiheadAttention, quantisers). A weight
    that was tied to the weight of another module is no longer tied. Everything is checked and built before anything is
    replaced.

    Args:
        module: Changed in place.
        pattern: A glob over the whole name, whose * also crosses dots ("encoder.*.wi"), or a compiled regular
            expression that matches the whole name.
        terms: As in PHMLinear.
        rank: As in PHMLinear.
        local_rank: As in PHMLinear.
        init: "fit" takes the nearest sum of Kronecker products (PHMLinear.from_linear). "variance_matched" and
            "compacter" draw new parameters.

    Returns:
        The names of the replaced layers.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: The pattern matches nothing, `init` is unknown, or the sizes of a layer do not divide. The message
            names the layer.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module; got {type(module).__name__}.")
    if type(module) is nn.Linear:
        raise ValueError("module is itself an nn.Linear, which has no parent; use PHMLinear.from_linear(module).")
    if not isinstance(pattern, (str, re.Pattern)):
        raise TypeError(f"pattern must be a glob string or a compiled re.Pattern; got {type(pattern).__name__}.")
    check_choice("init", init, ("fit", *INITS))

    linears = {name: m for name, m in module.named_modules(remove_duplicate=False) if type(m) is nn.Linear}
    expression = re.compile(translate(pattern)) if isinstance(pattern, str) else pattern
    chosen = {linear for name, linear in linears.items() if expression.fullmatch(name)}
    if not chosen:
        shown = pattern if isinstance(pattern, str) else pattern.pattern
        raise ValueError(f"pattern {shown!r} matches no nn.Linear of the module, which has {_some(linears)}.")
    places = {name: linear for name, linear in linears.items() if linear in chosen}
    for name, linear in places.items():
        try:
            for side in ("in_features", "out_features"):
                divided(side, getattr(linear, side), "terms", terms)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error} Nothing was replaced: choose another number of terms, or a pattern that leaves this "
                "layer out."
            ) from None
    # the keys are modules, whose hash is their identity: each is fitted once
    built = {linear: _converted(linear, terms, rank, local_rank, init) for linear in dict.fromkeys(places.values())}
    for name, linear in places.items():
        module.set_submodule(name, built[linear])
    return list(places)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest if names else "none"


def _converted(linear: nn.Linear, terms: int, rank: int | None, local_rank: int | None, init: str) -> PHMLinear:
    if init == "fit":
        layer = PHMLinear.from_linear(linear, terms, rank, local_rank)
    else:
        layer = PHMLinear.like(linear, terms, rank, local_rank, init)
    return layer.train(linear.training)


# Names of Compacter, which adapters has kept: names of PHMLinear. A factor is whole or in two parts.
_FACTORS = {
    "phm_rule": {"phm_rule": "rule", "phm_rule_left": "rule_in", "phm_rule_right": "rule_out"},
    "W": {"W": "local", "W_left": "local_left", "W_right": "local_right"},
}
_SHAPES = {
    "phm_rule": ("terms", "terms", "terms"),
    "phm_rule_left": ("terms", "terms", "rank"),
    "phm_rule_right": ("terms", "rank", "terms"),
    "W": ("terms", "in/terms", "out/terms"),
    "W_left": ("terms", "in/terms", "local rank"),
    "W_right": ("terms", "local rank", "out/terms"),
    "b": ("out",),
}


def phm_linear_from_compacter(
    state: Mapping[str, Tensor],
    prefix: str = "",
    *,
    shared: Mapping[str, Tensor] | None = None,
    position: str | None = None,
) -> PHMLinear:
    """Build a PHMLinear with the parameters of a PHM layer of rabeehk/compacter (PHMLinear) or of adapters (PHMLayer).

    Everything is copied. Layers that shared a rule each get a copy of it: share it again by `other.rule = layer.rule`.

    Args:
        state: Under `prefix` it holds phm_rule (terms, terms, terms), or phm_rule_left (terms, terms, rank) and
            phm_rule_right (terms, rank, terms); W (terms, in/terms, out/terms), or W_left (terms, in/terms, rank) and
            W_right (terms, rank, out/terms); and b (out,), unless the layer has no bias. The new layer has the same
            sizes, ranks, device and dtype.
        prefix: Prefix of the layer's names in `state`.
        shared: The factors that a model keeps once for all its layers, by the same names. The new layer takes every
            factor that `state` lacks from `shared`. In a checkpoint of adapters the names of shared factors start with
            p = "<base model>.shared_parameters.<adapter name>.". Pass
            {key.removeprefix(p): t for key, t in state.items() if key.startswith(p)}
        position: "down" or "up": the name of the shared W starts with W_down or W_up, as in adapters.

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A key is missing, unknown or contradicts another, or a shape does not fit.
    """
    for name, mapping in (("state", state), ("shared", {} if shared is None else shared)):
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{name} must be a mapping of names to tensors; got {type(mapping).__name__}.")
    check_choice("position", position, ("down", "up", None))
    prefix = prefix if not prefix or prefix.endswith(".") else prefix + "."
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    if prefix and not own:
        raise ValueError(f"state has no key that starts with {prefix!r}; its keys are {_some(state)}.")
    unknown = sorted(own.keys() - _SHAPES.keys())
    if unknown:
        raise ValueError(
            f"state has keys that a PHM layer has not: {', '.join(prefix + key for key in unknown)}. Name the layer "
            f"by prefix=; known are {', '.join(_SHAPES)}."
        )
    at_position = {} if shared is None else _of_position(shared, position)
    found: dict[str, Tensor] = {}
    for family, names in _FACTORS.items():
        source, where = (own, f"state, prefix {prefix!r}") if own.keys() & names.keys() else (at_position, "shared")
        found |= _whole_or_in_two(family, {key: source[key] for key in names if key in source}, where)
    if "b" in own:
        found["b"] = own["b"]
    return _phm_linear_of(found)


def _of_position(shared: Mapping[str, Tensor], position: str | None) -> dict[str, Tensor]:
    """Return the shared factors by the names of a layer's own factors: W_down_left is W_left of position "down"."""
    if position is None:
        return dict(shared)
    renamed = {key.replace(f"W_{position}", "W", 1): t for key, t in shared.items() if key.startswith(f"W_{position}")}
    return renamed | {key: t for key, t in shared.items() if not key.startswith("W")}


def _whole_or_in_two(family: str, given: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    whole, *halves = _FACTORS[family]
    if set(given) not in ({whole}, set(halves)):
        raise ValueError(
            f"{family} must be given as {whole}, or as {' and '.join(halves)}; got {_some(given)} in {where}. A factor "
            "that several layers share is passed as shared={...}, with position= for adapters."
        )
    return given


def _phm_linear_of(found: dict[str, Tensor]) -> PHMLinear:
    check_kind(tuple(found), tuple(found.values()), dtype_of=lambda tensor: tensor.dtype)
    shapes = {key: str(_SHAPES[key]).replace("'", "") for key in found}
    for key, tensor in found.items():
        check_dims(key, tensor, shapes[key], exactly=len(_SHAPES[key]))
    local_in, local_out = (found[key] for key in (("W", "W") if "W" in found else ("W_left", "W_right")))
    terms, loc_in, loc_out = local_in.shape[0], local_in.shape[1], local_out.shape[2]
    rank = found["phm_rule_left"].shape[2] if "phm_rule_left" in found else None
    local_rank = local_in.shape[2] if "W_left" in found else None
    options = (terms * loc_in, terms * loc_out, terms, rank, local_rank, "b" in found)
    layer = nn.utils.skip_init(PHMLinear, *options, device=local_in.device, dtype=local_in.dtype)
    ours = _FACTORS["phm_rule"] | _FACTORS["W"] | {"b": "bias"}
    for key, tensor in found.items():
        expected = tuple(layer.get_parameter(ours[key]).shape)
        check_shape(key, tensor, shapes[key], expected, " Do all tensors belong to one layer?")
    layer.load_state_dict({ours[key]: tensor for key, tensor in found.items()})
    return layer
