"""Check the arguments of the operations of step.py, as validation.py does for the operations on PHM maps."""

import torch
from torch import Tensor

from .derivatives import AnyTensor
from .sharding import is_distributed
from .validation import check_dims, check_equal, check_int64, check_number, check_shape

_SEED_END = 2**63 - 1


def promoted(first: Tensor, second: AnyTensor) -> tuple[Tensor, AnyTensor]:
    """Return both tensors in the wider of their dtypes under autocast, which leaves norms and sums alone."""
    if not torch._C._is_any_autocast_enabled() or not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return first, second
    wide = torch.promote_types(first.dtype, second.dtype)
    return first.to(wide), second.to(wide)


def check_probability(name: str, value: object) -> None:
    """Check that the value is at least 0 and below 1."""
    check_number(name, value)
    if not 0 <= value < 1:  # type: ignore[operator]  # a number, as checked
        raise ValueError(f"{name} must be at least 0 and below 1; got {value}.")


def check_not_distributed(op: str, *tensors: object) -> None:
    """Raise ValueError for a DTensor: processes would draw different masks."""
    if is_distributed(tensors):
        raise ValueError(f"{op} takes no DTensors; got one. Use the local tensors: x.to_local().")


def seed_of(seed: int | Tensor | None, p: float, like: Tensor) -> Tensor | None:
    """Return the seed of a call as a tensor, or None if nothing is dropped."""
    if p == 0 or not isinstance(like, Tensor):
        return None
    if seed is None:
        return torch.randint(_SEED_END, (1,), dtype=torch.int64, device=like.device)
    if isinstance(seed, Tensor):
        check_int64("seed", seed, "(1,)")
        check_shape("seed", seed, "(1,)", (1,))
        return seed.to(like.device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, an int64 tensor (1,) or None; got {type(seed).__name__}.")
    if not 0 <= seed <= _SEED_END:
        raise ValueError(f"seed must lie in 0..{_SEED_END}; got {seed}.")
    return torch.tensor([seed], dtype=torch.int64, device=like.device)


def check_rms_norm(x: Tensor, weight: Tensor) -> None:
    """Check the shapes of rms_norm."""
    check_dims("x", x, "(..., d)", at_least=1, filled=0, cure="x.unsqueeze(0)")
    check_shape("weight", weight, "(d,)", (x.shape[-1],))
    check_dims("weight", weight, "(d,)", exactly=1)


def check_rows(x: Tensor, residual: Tensor | None = None) -> None:
    """Check the shapes of dropout_add and relu_dropout."""
    check_dims("x", x, "(..., d)", at_least=1, filled=0, cure="x.unsqueeze(0)")
    if residual is not None:
        check_shape("residual", residual, "the shape of x", tuple(x.shape))


def check_gated(gate: Tensor, x: Tensor) -> None:
    """Check the shapes of gated_gelu_dropout."""
    check_dims("gate", gate, "(..., d)", at_least=1, filled=0, cure="gate.unsqueeze(0)")
    check_shape("x", x, "the shape of gate", tuple(gate.shape))


def check_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor | None, prefix_value: Tensor | None, bias
) -> None:
    """Check the shapes of prefix_attention."""
    check_dims("query", query, "(batch, heads, q, d)", exactly=4, filled=0, cure="query.unsqueeze(0)")
    batch, heads, length, width = query.shape
    check_dims("key", key, "(batch, heads, k, d)", exactly=4, filled=0, cure="key.unsqueeze(0)")
    tokens = key.shape[2]
    check_shape("key", key, "(batch, heads, k, d)", (batch, heads, tokens, width))
    check_shape("value", value, "(batch, heads, k, d), as key", (batch, heads, tokens, width))
    if prefix_key is not None and prefix_value is not None:
        check_dims("prefix_key", prefix_key, "(r, heads, p, d)", exactly=4, filled=1, cure="prefix_key.unsqueeze(0)")
        for dim, size, of in ((1, heads, "heads of query"), (3, width, "d of query")):
            check_equal("prefix_key", prefix_key, dim, size, of)
        check_shape("prefix_value", prefix_value, "the shape of prefix_key", tuple(prefix_key.shape))
    if bias is not None:
        check_shape("bias", bias, "(heads, q, k)", (heads, length, tokens))


def check_linear_cross_entropy(x: Tensor, weight: Tensor) -> None:
    """Check the shapes of linear_cross_entropy."""
    check_dims("x", x, "(..., width)", at_least=1, filled=0, cure="x.unsqueeze(0)")
    check_dims("weight", weight, "(classes, width)", exactly=2)
    check_equal("weight", weight, 1, x.shape[-1], "width of x")
