"""Named shapes (shapes.json), inputs of these shapes, and the error budget: shared by `check`, tests/ and benchmarks/.

A call is right if its error against the truth (truth.py), relative to each tensor's root mean square, is at most twice
the error of reference.py in the same dtype, plus 4 ulp (`assert_within_budget`). Two shapes have a purpose that their
name does not tell: "high_rank" has a rank above min(g_in, g_out), and the prompts "one" have rank 2, because a
LayerNorm after rank 1 leaves nothing but a sign, and its gradients would be rounding.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import backends
from .validation import maps_of


class Shape(NamedTuple):
    """One PHM map applied to `rows` rows."""

    rows: int
    terms: int
    g_in: int
    g_out: int
    loc_in: int
    loc_out: int
    rank: int

    @property
    def d_in(self) -> int:
        """Width of x."""
        return self.g_in * self.loc_in

    @property
    def d_out(self) -> int:
        """Width of the outputs."""
        return self.g_out * self.loc_out


class Bank(NamedTuple):
    """The maps of a mixture: `down`, then `maps` maps of shape `up` on the hidden rows, for layers x experts pairs."""

    layers: int
    experts: int
    down: Shape
    up: Shape
    maps: int = 2


# Leading group dims (layers, experts) of every tensor of MOP: True is full, False is 1.
MOP_SHARING = {
    "x": (False, False),
    "rule_in": (False, True),
    "rule_out": (True, False),
    "local": (True, True),
    "bias": (True, False),
}


class PromptShape(NamedTuple):
    """One call of attempt_mix."""

    batch: int
    length: int
    width: int
    rows: int
    sources: int
    tasks: int
    rank: int


class AttentionShape(NamedTuple):
    """One call of prefix_attention. rows: rows of the prefix, 0 for a call without a prefix."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    prefix: int
    rows: int
    causal: bool


_NAMED = json.loads((Path(__file__).parent / "shapes.json").read_text())
SHAPES = {name: Shape(**sizes) for name, sizes in _NAMED["maps"].items()}
BANKS = {
    name: Bank(**sizes | {"down": Shape(**sizes["down"]), "up": Shape(**sizes["up"])})
    for name, sizes in _NAMED["banks"].items()
}
ATTENTIONS = {name: AttentionShape(**sizes) for name, sizes in _NAMED["attentions"].items()}
PROMPTS = {name: PromptShape(**sizes) for name, sizes in _NAMED["prompts"].items()}


def device_of(backend: str) -> torch.device:
    """Return the device of a backend's tensors: the CPU if its kernels run there, also interpreted, or else the GPU."""
    return torch.device("cpu" if backends.runs_on_cpu(backend) else "cuda")


def normal(generator: torch.Generator, dtype: torch.dtype, *shape: int, fan: int = 1) -> Tensor:
    """Return normal numbers of variance 1/fan on torch's default device, equal on all devices. Draw none on "meta"."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (drawn / fan**0.5).to(device, dtype)


def integers(generator: torch.Generator, end: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return integers in 0 .. end - 1, drawn as `normal` draws."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.randint(end, shape, generator=generator, dtype=dtype, device="cpu").to(device)


def lowrank_inputs(shape: Shape, dtype: torch.dtype, *, bias: bool = True, seed: int = 0) -> list[Tensor | None]:
    """Return [x, rule_in, rule_out, local, bias | None]. Outputs have variance about 1."""
    g = torch.Generator().manual_seed(seed)
    return [
        normal(g, dtype, shape.rows, shape.d_in),
        normal(g, dtype, shape.terms, shape.g_in, shape.rank, fan=shape.g_in),
        normal(g, dtype, shape.terms, shape.rank, shape.g_out, fan=shape.terms * shape.rank),
        normal(g, dtype, shape.terms, shape.loc_in, shape.loc_out, fan=shape.loc_in),
        normal(g, dtype, shape.d_out) if bias else None,
    ]


def linear_inputs(shape: Shape, dtype: torch.dtype, *, bias: bool = True, seed: int = 0) -> list[Tensor | None]:
    """Return [x, rule, local, bias | None] of phm_linear."""
    x, _, _, local, bias_ = lowrank_inputs(shape, dtype, bias=bias, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    return [x, normal(g, dtype, shape.terms, shape.g_in, shape.g_out, fan=shape.g_in * shape.terms), local, bias_]


def weight_inputs(shape: Shape, dtype: torch.dtype, *, seed: int = 0) -> list[Tensor | None]:
    """Return [rule, local] of phm_weight."""
    return linear_inputs(shape, dtype, seed=seed)[1:3]


def mop_inputs(
    bank: Bank,
    dtype: torch.dtype,
    *,
    sharing: dict[str, tuple[bool, bool]] = MOP_SHARING,
    bias: bool = True,
    full_rule: bool = False,
    seed: int = 0,
) -> list[Tensor | None]:
    """Return [x, *down, *up, ..., *up], each map [rule_in, rule_out | None, local, bias | None].

    sharing: For each tensor, whether its group dims are full. full_rule: rule_in is the full rule
    (., ., terms, g_in, g_out), and rule_out is None.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(name: str, *shape: int, fan: int = 1) -> Tensor:
        full_layers, full_experts = sharing[name]
        groups = (bank.layers if full_layers else 1, bank.experts if full_experts else 1)
        return normal(g, dtype, *groups, *shape, fan=fan)

    def phm(s: Shape) -> list[Tensor | None]:
        if full_rule:
            rules = [draw("rule_in", s.terms, s.g_in, s.g_out, fan=s.g_in * s.terms), None]
        else:
            rules = [
                draw("rule_in", s.terms, s.g_in, s.rank, fan=s.g_in),
                draw("rule_out", s.terms, s.rank, s.g_out, fan=s.terms * s.rank),
            ]
        local = draw("local", s.terms, s.loc_in, s.loc_out, fan=s.loc_in)
        return [*rules, local, draw("bias", s.d_out) if bias else None]

    tensors = [draw("x", bank.down.rows, bank.down.d_in), *phm(bank.down)]
    for _ in range(bank.maps):
        tensors += phm(bank.up)
    return tensors


def as_mop_arguments(tensors: Sequence[Tensor | None]) -> tuple:
    """Return (x, down, ups) of the flat list of `mop_inputs`. down and each map of ups are lists of four factors."""
    x, *factors = tensors
    down, *ups = map(list, maps_of(factors))
    return x, down, ups


def prompt_inputs(shape: PromptShape, dtype: torch.dtype, *, seed: int = 0) -> tuple[list[Tensor], dict]:
    """Return [x, source, target, w_down, w_up, ln_weight, ln_bias], and mask, task_ids and temperature by name.

    The mask keeps a random half of the positions. The temperature spreads the attention.
    """
    g = torch.Generator().manual_seed(seed)
    tensors = [
        normal(g, dtype, shape.batch, shape.length, shape.width),
        normal(g, dtype, shape.sources, shape.rows, shape.width),
        normal(g, dtype, shape.tasks, shape.rows, shape.width),
        normal(g, dtype, shape.width, shape.rank, fan=shape.width),
        normal(g, dtype, shape.rank, shape.width, fan=shape.rank),
        normal(g, dtype, shape.width),
        normal(g, dtype, shape.width),
    ]
    options = {
        "mask": integers(g, 2, torch.bool, shape.batch, shape.length),
        "task_ids": integers(g, shape.tasks, torch.int64, shape.batch),
        "temperature": 2 * shape.width**0.5,
    }
    return tensors, options


def attention_inputs(
    shape: AttentionShape, dtype: torch.dtype, *, bias: bool = True, seed: int = 0
) -> tuple[list[Tensor | None], dict]:
    """Return [query, key, value, prefix_key, prefix_value, bias] of prefix_attention, and rows and key_mask by name.

    The mask keeps two thirds of the keys. None in place of the prefixes where the shape has no prefix.
    """
    g = torch.Generator().manual_seed(seed)
    batch, heads, queries, keys, width, prefix, rows, _ = shape
    prefixes = [normal(g, dtype, rows, heads, prefix, width) for _ in range(2)] if rows else [None, None]
    tensors = [
        normal(g, dtype, batch, heads, queries, width),
        normal(g, dtype, batch, heads, keys, width, fan=width),
        normal(g, dtype, batch, heads, keys, width),
        *prefixes,
        normal(g, dtype, heads, queries, keys) if bias else None,
    ]
    options = {
        "rows": integers(g, rows, torch.int64, batch) if rows > 1 else None,
        "key_mask": integers(g, 3, torch.int64, batch, keys) > 0,
    }
    return tensors, options


def value_and_gradients(
    function: Callable, tensors: Sequence[Tensor | None], grads: Sequence[Tensor], needs: Sequence[bool] | None = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the outputs of function(*tensors), and the gradients of sum(output * grad).

    A gradient is None if its tensor is absent or has no flag in `needs`.
    """
    needs = [t is not None for t in tensors] if needs is None else needs
    leaves = [None if t is None else t.detach().requires_grad_(needed) for t, needed in zip(tensors, needs)]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(outputs, asked, list(grads))) if asked else iter(())
    gradients = [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
    return [y.detach() for y in outputs], gradients


def in_float64(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return contiguous copies in float64. The backward pass of torch.kron takes no other strides."""
    return [None if t is None else t.double().contiguous() for t in tensors]


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Return the largest absolute error over the truth's root mean square. Return 0 for a truth of zeros, or empty.

    The error is NaN if `actual` has a NaN.
    """
    rms = truth.square().mean().sqrt().item() if truth.numel() else 0.0
    return (actual.double() - truth).abs().max().item() / rms if rms else 0.0


def error_budget(expected: Sequence[Tensor | None], truth: Sequence[Tensor | None]) -> float:
    """Return the largest relative error that a call's results may have: twice the error of `expected`, plus 4 ulp.

    `expected` holds all results of reference.py for this call, in its dtype. They are judged together: the reference
    may get a gradient of eight numbers right by chance, and only all tensors of a call show the size of rounding
    errors.
    """
    pairs = []
    for e, t in zip(expected, truth, strict=True):
        if t is not None:
            assert e is not None, "the reference lacks a result"
            pairs.append((e, t))
    return 2 * max(relative_error(e, t) for e, t in pairs) + 4 * torch.finfo(pairs[0][0].dtype).eps if pairs else 0.0


def assert_within_budget(
    actual: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
    truth: Sequence[Tensor | None],
    names: Sequence[str] | None = None,
) -> None:
    """Assert that all results of a call have the shape and dtype of `expected`, and stay within its error budget."""
    budget = error_budget(expected, truth)
    names = names or [f"tensor {k}" for k in range(len(truth))]
    for name, a, e, t in zip(names, actual, expected, truth, strict=True):
        if t is None:
            assert a is None, f"{name}: a tensor where none was requested"
            continue
        assert a is not None, f"{name} is missing"
        assert e is not None, f"{name} is missing in the reference"
        assert a.shape == t.shape, f"{name} has shape {tuple(a.shape)}, not {tuple(t.shape)}"
        assert a.dtype == e.dtype, f"{name} has dtype {a.dtype}, not {e.dtype}"
        if t.any():
            error = relative_error(a, t)
            assert error <= budget, f"{name}: relative error {error:.3g} against float64, budget {budget:.3g}"
        else:
            assert not a.any(), f"{name} is not zero"
