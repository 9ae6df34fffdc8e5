"""The torch.nn layers. A layer holds and draws its parameters, and its forward pass is one call of an operation."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from .functional import ACTIVATIONS, lowrank_phm_linear, mop_ffn, phm_linear, phm_weight
from .initialisation import INITS, DrawnLayer, init_factors, init_near_zero, nearest_kronecker_sum
from .reference import LowRankPHM
from .validation import check_choice, check_positive, divided

Device = torch.device | str | int | None
Groups = dict[str, tuple[int, int] | None]


class PHMLinear(DrawnLayer):
    """Drop-in for nn.Linear with weight W = sum_i rule_i (x) local_i, rule_i terms x terms (Reading A, Compacter).

    x (..., in_features) gives (..., out_features). Nothing is kept between calls, so the output always follows from the
    current parameters. When the parameters no longer change, `to_linear` returns the dense layer. On a CPU it is faster
    from some number of rows per call, between about 64 and 512, and slower below this number.

    Args:
        in_features: A multiple of terms.
        out_features: A multiple of terms.
        terms: Number of Kronecker products.
        rank: Rank of rule_i = rule_in_i @ rule_out_i (MOP Eq. 3). None: the rules are whole.
        local_rank: Rank of local_i = local_left_i @ local_right_i (Compacter). None: the locals are whole.
        bias: True if the layer has a bias (out_features,).
        init: "variance_matched" gives every entry of W the variance of nn.Linear's weight, 1/(3 in_features), and the
            bias its range. "compacter" draws rules from N(0, 0.01^2), locals Glorot-uniform with gain sqrt(2), bias 0.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: A size does not divide or is not positive, or `init` is unknown.
    """

    rule: nn.Parameter  # (terms, terms, terms), if rank is None
    rule_in: nn.Parameter  # (terms, terms, rank), otherwise
    rule_out: nn.Parameter  # (terms, rank, terms)
    local: nn.Parameter  # (terms, in_features/terms, out_features/terms), if local_rank is None
    local_left: nn.Parameter  # (terms, in_features/terms, local_rank), otherwise
    local_right: nn.Parameter  # (terms, local_rank, out_features/terms)
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        terms: int = 4,
        rank: int | None = None,
        local_rank: int | None = None,
        bias: bool = True,
        init: str = "variance_matched",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        loc_in = divided("in_features", in_features, "terms", terms)
        loc_out = divided("out_features", out_features, "terms", terms)
        check_positive(**{name: r for name, r in (("rank", rank), ("local_rank", local_rank)) if r is not None})
        check_choice("init", init, INITS)
        self.in_features, self.out_features, self.terms = in_features, out_features, terms
        self.rank, self.local_rank, self.init = rank, local_rank, init

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        if rank is None:
            self.rule = parameter(terms, terms, terms)
        else:
            self.rule_in, self.rule_out = parameter(terms, terms, rank), parameter(terms, rank, terms)
        if local_rank is None:
            self.local = parameter(terms, loc_in, loc_out)
        else:
            self.local_left = parameter(terms, loc_in, local_rank)
            self.local_right = parameter(terms, local_rank, loc_out)
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.reset_parameters()

    def _draw(self) -> None:
        rules: list[Tensor] = [self.rule] if self.rank is None else [self.rule_in, self.rule_out]
        locals_: list[Tensor] = [self.local] if self.local_rank is None else [self.local_left, self.local_right]
        init_factors(rules, locals_, 1 / (3 * self.in_features), self.init)
        if self.bias is not None:
            if self.init == "variance_matched":
                bound = 1 / math.sqrt(self.in_features)
                nn.init.uniform_(self.bias, -bound, bound)
            else:
                nn.init.zeros_(self.bias)

    def _local(self) -> Tensor:
        return self.local if self.local_rank is None else self.local_left @ self.local_right

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + bias (..., out_features) for x (..., in_features)."""
        if self.rank is None:
            return phm_linear(x, self.rule, self._local(), self.bias)
        return lowrank_phm_linear(x, self.rule_in, self.rule_out, self._local(), self.bias)

    def weight_matrix(self) -> Tensor:
        """Return W (in_features, out_features), y = x W: the transpose of nn.Linear's weight."""
        rule = self.rule if self.rank is None else self.rule_in @ self.rule_out
        return phm_weight(rule, self._local())

    @classmethod
    def like(
        cls,
        linear: nn.Linear,
        terms: int = 4,
        rank: int | None = None,
        local_rank: int | None = None,
        init: str = "variance_matched",
    ) -> "PHMLinear":
        """Return a freshly drawn layer with the sizes, device and dtype of a dense layer, and a bias if it has one."""
        sizes = (linear.in_features, linear.out_features, terms, rank, local_rank, linear.bias is not None, init)
        return cls(*sizes, linear.weight.device, linear.weight.dtype)

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls, linear: nn.Linear, terms: int = 4, rank: int | None = None, local_rank: int | None = None
    ) -> "PHMLinear":
        """Return the best fit to a dense layer: the nearest sum of `terms` Kronecker products in the Frobenius norm.

        The fit is exact if W is such a sum (initialisation.nearest_kronecker_sum). The layer has the device and dtype
        of `linear`.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear; got {type(linear).__name__}.")
        layer = cls.like(linear, terms, rank, local_rank)
        for name, part in nearest_kronecker_sum(linear.weight.T, terms, rank, local_rank).items():
            target = getattr(layer, name).zero_()
            target[tuple(map(slice, part.shape))] = part
        if layer.bias is not None:
            layer.bias.copy_(linear.bias)
        return layer

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same function."""
        weight = _whole(self.weight_matrix())
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype)
        linear.weight.copy_(weight.T)
        if self.bias is not None:
            linear.bias.copy_(_whole(self.bias))
        return linear

    def extra_repr(self) -> str:
        """Return the sizes for repr."""
        sizes = ("in_features", "out_features", "terms", "rank", "local_rank")
        return ", ".join([*(f"{name}={getattr(self, name)}" for name in sizes), f"bias={self.bias is not None}"])


class MOPFeedForward(nn.Module):
    """The mixture of low-rank PHM experts that generates MOP's prefixes, for all layers and experts at once.

    P[l, e] = activation(x W_down[l, e] + b) W_up[l, e] + b, with W = sum_i (rule_in_i[e] @ rule_out_i[l]) (x)
    local_i[l, e] (MOP Eqs. 1 to 4). rule_in is LoRL: there is one per expert, which the layers share. rule_out is LoRE:
    there is one per layer, which the experts share. All up maps share the hidden rows.

    Args:
        num_layers: Layers of the backbone that the mixture serves.
        num_experts: Experts of the mixture.
        d_in: Width of x.
        d_mid: Width of the hidden rows.
        d_out: Width of the outputs.
        num_maps: Number of up maps (MOP: two, for keys and values).
        terms_down: Terms of the down map.
        terms_up: Terms of the up maps.
        rank: Rank of low-rank rules.
        reading: "A": rule terms x terms and local (in/terms) x (out/terms). "B": rule (in/terms) x (out/terms) and
            local terms x terms.
        share_lorl: False: every pair has its own rule_in ("w/o LoRL").
        share_lore: False: every pair has its own rule_out ("w/o LoRE").
        rule: "low_rank". "full": rules are trained directly ("w/o low-rank"). "dense": no rules, every pair has plain
            matrices (Eq. 1), stored as locals of a single term. Only low-rank rules have a rank, share_lorl,
            share_lore and drop_lorl.
        rule_scope: Number of full rules: one for all ("global"), one per layer ("layer") or one per pair
            ("layer_expert").
        bias: One bias per "layer", "expert" or pair ("layer_expert"), or None.
        activation: As in mop_ffn.
        init: "variance_matched", Var(W) = 2/(in + out). "compacter", rules N(0, 0.01^2), locals Glorot-uniform.
            "zero_up", rules N(0, 0.0001^2), up locals zero, so that all outputs start at zero.
        drop_lorl: rule_in is fixed to ones ("w/o LoRL" in its other meaning).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: A size does not divide or is not positive, or a name is unknown.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        d_in: int,
        d_mid: int,
        d_out: int,
        num_maps: int = 2,
        terms_down: int = 16,
        terms_up: int = 8,
        rank: int = 1,
        reading: str = "A",
        share_lorl: bool = True,
        share_lore: bool = True,
        rule: str = "low_rank",
        rule_scope: str = "global",
        bias: str | None = "layer",
        activation: str = "relu",
        init: str = "variance_matched",
        drop_lorl: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_positive(num_layers=num_layers, num_experts=num_experts, d_in=d_in, d_mid=d_mid, d_out=d_out)
        check_positive(num_maps=num_maps, terms_down=terms_down, terms_up=terms_up, rank=rank)
        check_choice("reading", reading, ("A", "B"))
        check_choice("rule", rule, ("low_rank", "full", "dense"))
        check_choice("rule_scope", rule_scope, ("global", "layer", "layer_expert"))
        check_choice("bias", bias, ("layer", "expert", "layer_expert", None))
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("init", init, (*INITS, "zero_up"))
        self.num_layers, self.num_experts = num_layers, num_experts
        self.d_in, self.d_mid, self.d_out, self.activation = d_in, d_mid, d_out, activation

        pair = (num_layers, num_experts)
        scopes = {"global": (1, 1), "layer": (num_layers, 1), "expert": (1, num_experts), "layer_expert": pair}
        groups: Groups = {"rule_in": None, "rule_out": None, "local": pair, "bias": scopes[bias] if bias else None}
        if rule == "full":
            groups["rule_in"] = scopes[rule_scope]
        elif rule == "low_rank":
            groups["rule_in"] = None if drop_lorl else scopes["expert" if share_lorl else "layer_expert"]
            groups["rule_out"] = scopes["layer" if share_lore else "layer_expert"]

        def factors(terms: int, side_in: int, side_out: int, names: tuple[str, str], init: str) -> _PHMFactors:
            terms = 1 if rule == "dense" else terms
            outer = (divided(names[0], side_in, "its terms", terms), divided(names[1], side_out, "its terms", terms))
            square = (terms, terms)
            rule_sides, local_sides = (square, outer) if reading == "A" or rule == "dense" else (outer, square)
            return _PHMFactors(groups, terms, rule_sides, local_sides, rank, init, device, dtype)

        up_init = "zero" if init == "zero_up" else init
        self.down = factors(terms_down, d_in, d_mid, ("d_in", "d_mid"), init)
        self.ups = nn.ModuleList(factors(terms_up, d_mid, d_out, ("d_mid", "d_out"), up_init) for _ in range(num_maps))

    def forward(self, x: Tensor, experts: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return one tensor (num_layers, num_experts or k, n, d_out) per up map.

        Args:
            x: (n, d_in), or (num_experts, n, d_in) if each expert has its own rows.
            experts: int64 (k,), distinct: compute only these experts, in this order. None: all.
        """
        if x.dim() not in (2, 3) or (x.dim() == 3 and x.shape[0] != self.num_experts):
            raise ValueError(
                f"x must have shape (n, {self.d_in}) or ({self.num_experts}, n, {self.d_in}); got {tuple(x.shape)}."
            )
        rows = x[None] if x.dim() == 3 else x[None, None]
        ups = [up() for up in self.ups]  # called as modules, so that their hooks run (pruning, offloading)
        return mop_ffn(rows, self.down(), ups, activation=self.activation, experts=experts)

    def weight_matrix(self, layer: int, expert: int, map: str | int) -> Tensor:
        """Return the dense W of one pair: (d_in, d_mid) of map "down", (d_mid, d_out) of up map number `map`."""
        if map != "down" and map not in range(len(self.ups)):
            raise ValueError(f"map must be 'down' or an up map 0..{len(self.ups) - 1}; got {map!r}.")
        for name, value, size in (("layer", layer, self.num_layers), ("expert", expert, self.num_experts)):
            if value not in range(size):
                raise ValueError(f"{name} must lie in 0..{size - 1}; got {value!r}.")
        factors = self.down if map == "down" else cast(_PHMFactors, self.ups[int(map)])
        return factors.weight_matrix(layer, expert)

    def extra_repr(self) -> str:
        """Return the sizes for repr."""
        names = ("num_layers", "num_experts", "d_in", "d_mid", "d_out", "activation")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class _PHMFactors(DrawnLayer):
    """The parameters of one map of MOPFeedForward, each with its leading group dims (layers|1, experts|1).

    groups: The two group dims of each parameter. None: the parameter is not trained. Without rule_out, rule_in is a
    full rule. A rule_in that is not trained holds ones.
    """

    rule_in: nn.Parameter | None
    rule_out: nn.Parameter | None
    local: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        groups: Groups,
        terms: int,
        rule_sides: tuple[int, int],
        local_sides: tuple[int, int],
        rank: int,
        init: str,
        device: Device,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        (g_in, g_out), (loc_in, loc_out) = rule_sides, local_sides
        width = g_out if groups["rule_out"] is None else rank
        shapes = {
            "rule_in": (terms, g_in, width),
            "rule_out": (terms, rank, g_out),
            "local": (terms, loc_in, loc_out),
            "bias": (g_out * loc_out,),
        }
        for name, shape in shapes.items():
            group = groups[name]
            self.register_parameter(
                name, group and nn.Parameter(torch.empty(*group, *shape, device=device, dtype=dtype))
            )
        self.rule_in_shape = shapes["rule_in"]
        self.variance = 2 / (g_in * loc_in + g_out * loc_out)
        self.init = init
        self.reset_parameters()

    def _draw(self) -> None:
        rules: list[Tensor] = [rule for rule in (self.rule_in, self.rule_out) if rule is not None]
        if self.init in ("zero_up", "zero"):
            init_near_zero(rules, self.local)
            if self.init == "zero":
                nn.init.zeros_(self.local)
        else:
            # ones in place of rule_in add up `width` independent entries of rule_out
            dropped = self.rule_in is None and self.rule_out is not None
            variance = self.variance / self.rule_in_shape[-1] if dropped else self.variance
            init_factors(rules, [self.local], variance, self.init)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self) -> LowRankPHM:
        """Return the factors, which mop_ffn takes."""
        rule_in = self.local.new_ones(1, 1, *self.rule_in_shape) if self.rule_in is None else self.rule_in
        return LowRankPHM(rule_in, self.rule_out, self.local, self.bias)

    def weight_matrix(self, layer: int, expert: int) -> Tensor:
        """Return the dense W of one pair."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor[layer if tensor.shape[0] > 1 else 0, expert if tensor.shape[1] > 1 else 0]

        rule_in, rule_out, local, _ = self()
        rule = pick(rule_in) if rule_out is None else pick(rule_in) @ pick(rule_out)
        return phm_weight(rule, pick(local))


def _whole(tensor: Tensor) -> Tensor:
    """Gather a DTensor; return any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
