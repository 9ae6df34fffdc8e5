"""The Kronecker layers of each library behind one form, `Made`, for kronecker.py.

A layer has a frozen base (zero, or random) where its library adds to one. A library is imported only in its own
function. The second factor has rank 2 where the library has that form and `whole` is False; LoKr's alpha is 6.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RANK, ALPHA = 2, 6
Rows = Callable[[Tensor], Tensor]


@dataclass
class Made:
    """A layer of a library.

    Args:
        call: rows (n, in) to rows (n, out).
        parameters: its factors, which can be changed in place. They require gradients if the library draws them.
        terms: the factors as they are multiplied now: one pair of matrices per term.
        merge: merges the layer into a dense one, and returns the call of the merged layer. None: no such function.
    """

    call: Rows
    parameters: list[Tensor]
    terms: Callable[[], list[tuple[Tensor, Tensor]]]
    merge: Callable[[], Rows] | None = None


@dataclass
class Sizes:
    """Sizes of a layer: in = outer * inner_in, out = outer * inner_out. `outer` is also the number of PHM's terms."""

    outer: int
    inner_in: int
    inner_out: int
    dtype: torch.dtype = torch.float32
    whole: bool = False
    random_base: bool = False

    @property
    def width(self) -> int:
        """Return the number of inputs."""
        return self.outer * self.inner_in

    @property
    def out(self) -> int:
        """Return the number of outputs."""
        return self.outer * self.inner_out

    def base(self) -> nn.Linear:
        """Return the frozen layer to which LoKr adds."""
        torch.manual_seed(0)
        base = nn.Linear(self.width, self.out, bias=False, dtype=self.dtype)
        if not self.random_base:
            nn.init.zeros_(base.weight)
        return base.requires_grad_(False)


def torch_kron(sizes: Sizes) -> Made:
    """Return a linear layer whose weight is torch.kron of two matrices."""
    a = torch.empty(sizes.outer, sizes.outer, dtype=sizes.dtype)
    b = torch.empty(sizes.inner_out, sizes.inner_in, dtype=sizes.dtype)
    return Made(lambda x: F.linear(x, torch.kron(a, b)), [a, b], lambda: [(a, b)])


def fastkron(sizes: Sizes) -> Made:
    """Return pyfastkron's product of rows and two matrices."""
    from pyfastkron import fastkrontorch

    a = torch.empty(sizes.outer, sizes.outer, dtype=sizes.dtype)
    b = torch.empty(sizes.inner_in, sizes.inner_out, dtype=sizes.dtype)
    return Made(lambda x: fastkrontorch.gemkm(x, (a, b)), [a, b], lambda: [(a, b)])


def peft(sizes: Sizes, *, accelerated: bool = False, init_weights: bool | str = True) -> Made:
    """Return PEFT's LoKr, computed by PEFT or by mop_kernels.accelerate."""
    from peft import LoKrConfig, get_peft_model

    rank = 2 * max(sizes.inner_in, sizes.inner_out) if sizes.whole else RANK
    alpha = rank if sizes.whole else ALPHA
    options: dict[str, Any] = {"r": rank, "alpha": alpha, "decompose_factor": sizes.outer}
    config = LoKrConfig(target_modules=["0"], init_weights=init_weights, **options)
    model = get_peft_model(nn.Sequential(sizes.base()), config)
    layer = model.base_model.model[0].to(sizes.dtype).eval()
    if accelerated:
        import mop_kernels

        assert len(mop_kernels.accelerate(model).accelerated) == 1

    def terms() -> list[tuple[Tensor, Tensor]]:
        w2 = layer.lokr_w2["default"] if sizes.whole else layer.lokr_w2_a["default"] @ layer.lokr_w2_b["default"]
        return [(layer.lokr_w1["default"], w2)]

    def merge() -> Rows:
        model.merge_adapter()
        return layer

    return Made(layer, [p for p in model.parameters() if p.requires_grad], terms, merge)


def lycoris(sizes: Sizes, *, bypass: bool) -> Made:
    """Return LyCORIS' LoKr in bypass mode or in weight mode."""
    from lycoris import LokrModule

    base = sizes.base()
    rank = 2 * max(sizes.inner_in, sizes.inner_out) if sizes.whole else RANK
    options: dict[str, Any] = {"factor": sizes.outer, "bypass_mode": bypass, "full_matrix": sizes.whole}
    module = LokrModule("lokr", base, lora_dim=rank, alpha=rank if sizes.whole else ALPHA, **options).to(sizes.dtype)
    module.apply_to()

    def terms() -> list[tuple[Tensor, Tensor]]:
        return [(module.lokr_w1, module.lokr_w2 if sizes.whole else module.lokr_w2_a @ module.lokr_w2_b)]

    def merge() -> Rows:
        module.restore()
        module.merge_to()
        return base

    return Made(base, list(module.parameters()), terms, merge)


def of_phm(sizes: Sizes, layer: Any, rule: str, factor: str, merge: Callable[[], Rows] | None = None) -> Made:
    """Return a PHM layer by the names of its rule and of its second factor, whose halves end with _left and _right."""

    def part(name: str) -> Any:
        return getattr(layer, factor + name)

    def terms() -> list[tuple[Tensor, Tensor]]:
        return list(zip(getattr(layer, rule), part("") if sizes.whole else part("_left") @ part("_right")))

    return Made(layer, list(layer.parameters()), terms, merge)


def adapters(sizes: Sizes) -> Made:
    """Return the PHM layer of adapters, as Compacter has it, but with rules of its own."""
    from adapters import CompacterConfig
    from adapters.methods.modeling import PHMLayer

    options: dict[str, Any] = {"phm_dim": sizes.outer, "shared_phm_rule": False, "phm_bias": False}
    config = CompacterConfig(**options, factorized_phm_W=not sizes.whole, phm_rank=RANK)
    layer = PHMLayer("lokr", sizes.width, sizes.out, "down", config).to(sizes.dtype)
    return of_phm(sizes, layer, "phm_rule", "W")


def opendelta(sizes: Sizes) -> Made:
    """Return the PHM layer of OpenDelta's Compacter, which is that of the Compacter paper's code."""
    if "opendelta" not in sys.modules:
        # the package imports names that transformers 5 does not have, so its two files are imported by themselves
        specification = importlib.util.find_spec("opendelta")
        assert specification is not None
        for name in ("opendelta", "opendelta.delta_models", "opendelta.delta_models.layers"):
            stand_in = types.ModuleType(name)
            inside = name.split(".")[1:]
            stand_in.__path__ = [str(Path(p, *inside)) for p in specification.submodule_search_locations or ()]
            sys.modules[name] = stand_in
    from opendelta.delta_models.layers.hypercomplex_linear import PHMLinear

    options: dict[str, Any] = {"bias": False, "w_init": "glorot-uniform", "c_init": "normal", "dtype": sizes.dtype}
    options |= {"factorized_phm": not sizes.whole, "phm_rank": RANK}
    return of_phm(sizes, PHMLinear(sizes.width, sizes.out, sizes.outer, **options), "phm_rule", "W")


def mop_kernels(sizes: Sizes) -> Made:
    """Return the PHMLinear of this project."""
    from mop_kernels import PHMLinear

    options: dict[str, Any] = {"bias": False, "local_rank": None if sizes.whole else RANK, "dtype": sizes.dtype}
    layer = PHMLinear(sizes.width, sizes.out, sizes.outer, **options)
    return of_phm(sizes, layer, "rule", "local", layer.to_linear)


class Library(NamedTuple):
    """A library: its distribution, how its layer is made, and the names of the two factors."""

    package: str
    make: Callable[[Sizes], Made]
    factors: tuple[str, str]


LOKR, PHM = ("w1", "w2"), ("rule_i", "W_i")
LIBRARIES = {
    "torch.kron": Library("torch", torch_kron, ("a", "b")),
    "pyfastkron": Library("pyfastkron", fastkron, ("a", "b")),
    "PEFT LoKr": Library("peft", peft, LOKR),
    'PEFT LoKr, init_weights="lycoris"': Library("peft", partial(peft, init_weights="lycoris"), LOKR),
    "PEFT LoKr, accelerated": Library("peft", partial(peft, accelerated=True), LOKR),
    "LyCORIS LoKr, bypass": Library("lycoris-lora", partial(lycoris, bypass=True), LOKR),
    "LyCORIS LoKr, weight": Library("lycoris-lora", partial(lycoris, bypass=False), LOKR),
    "adapters PHMLayer": Library("adapters", adapters, PHM),
    "OpenDelta PHMLinear": Library("opendelta", opendelta, PHM),
    "mop_kernels PHMLinear": Library("mop-kernels", mop_kernels, ("rule_i", "local_i")),
}
