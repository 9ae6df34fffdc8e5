"""The torch.nn layers: parameters, their initialisation, and one call each."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .functional import ACTIVATIONS, LowRankPHM, lowrank_phm_linear, mop_ffn, phm_linear, phm_weight

INITS = ("variance_matched", "compacter")
COMPACTER_RULE_STD = 0.01


class PHMLinear(nn.Module):
    """Drop-in for nn.Linear with weight W = sum_i rule_i (x) local_i, rule_i terms x terms (Reading A, Compacter).

    in_features, out_features: multiples of terms. rank: rule_i = rule_in_i @ rule_out_i of that rank (MOP Eq. 3).
    local_rank: local_i = local_left_i @ local_right_i of that rank (Compacter). init: "variance_matched" gives every
    entry of W the variance of nn.Linear's weight, 1/(3 in_features), and the bias its range; "compacter" draws rules
    from N(0, 0.01^2), locals Glorot-uniform with gain sqrt(2), bias 0.

    Shapes: x (..., in_features) -> (..., out_features). Raises ValueError where a size does not divide.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        terms: int = 4,
        rank: int | None = None,
        local_rank: int | None = None,
        bias: bool = True,
        init: str = "variance_matched",
        device=None,
        dtype=None,
    ):
        super().__init__()
        loc_in = _divide("in_features", in_features, "terms", terms)
        loc_out = _divide("out_features", out_features, "terms", terms)
        _positive(**{name: r for name, r in (("rank", rank), ("local_rank", local_rank)) if r is not None})
        self.in_features, self.out_features, self.terms = in_features, out_features, terms
        self.rank, self.local_rank, self.init = rank, local_rank, _known_init(init)

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

    @torch.no_grad()
    def reset_parameters(self) -> None:
        rules = [self.rule] if self.rank is None else [self.rule_in, self.rule_out]
        locals_ = [self.local] if self.local_rank is None else [self.local_left, self.local_right]
        variance = 1 / (3 * self.in_features)
        _init_factors(rules, locals_, variance, self.init)
        if self.bias is not None:
            if self.init == "variance_matched":
                nn.init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
            else:
                nn.init.zeros_(self.bias)

    def _local(self) -> Tensor:
        return self.local if self.local_rank is None else self.local_left @ self.local_right

    def forward(self, x: Tensor) -> Tensor:
        if self.rank is None:
            return phm_linear(x, self.rule, self._local(), self.bias)
        return lowrank_phm_linear(x, self.rule_in, self.rule_out, self._local(), self.bias)

    def weight_matrix(self) -> Tensor:
        """W (in_features, out_features), y = x W: the transpose of nn.Linear's weight."""
        rule = self.rule if self.rank is None else self.rule_in @ self.rule_out
        return phm_weight(rule, self._local())

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls, linear: nn.Linear, terms: int = 4, rank: int | None = None, local_rank: int | None = None
    ) -> "PHMLinear":
        """The best fit to a dense layer: the nearest sum of `terms` Kronecker products in the Frobenius norm.

        By SVD of the rearranged W (Van Loan and Pitsianis); with rank or local_rank each factor is then cut to its
        own nearest matrix of that rank. Exact where W has such a form. Same device and dtype as `linear`.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear; got {type(linear).__name__}.")
        layer = cls(
            linear.in_features,
            linear.out_features,
            terms,
            rank,
            local_rank,
            linear.bias is not None,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        loc_in, loc_out = linear.in_features // terms, linear.out_features // terms
        blocks = linear.weight.T.double().reshape(terms, loc_in, terms, loc_out)
        rearranged = blocks.permute(0, 2, 1, 3).reshape(terms * terms, loc_in * loc_out)
        rule, local = _split_by_svd(rearranged, terms)
        rule = rule.T.reshape(-1, terms, terms)
        local = local.reshape(-1, loc_in, loc_out)
        for names, value, cut in (
            (("rule", "rule_in", "rule_out"), rule, rank),
            (("local", "local_left", "local_right"), local, local_rank),
        ):
            parts = [value] if cut is None else _split_by_svd(value, cut)
            for name, part in zip(names[:1] if cut is None else names[1:], parts):
                target = getattr(layer, name).zero_()
                target[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        if linear.bias is not None:
            layer.bias.copy_(linear.bias)
        return layer

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The dense layer with the same function."""
        weight = self.weight_matrix()
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype)
        linear.weight.copy_(weight.T)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, terms={self.terms}, rank={self.rank}, "
            f"local_rank={self.local_rank}, bias={self.bias is not None}"
        )


class MOPFeedForward(nn.Module):
    """The mixture of low-rank PHM experts that generates MOP's prefixes, for all layers and experts at once.

    P[l, e] = activation(x W_down[l, e] + b) W_up[l, e] + b, with W = sum_i (rule_in_i[e] @ rule_out_i[l]) (x)
    local_i[l, e] (MOP Eqs. 1 to 4). rule_in is LoRL: one an expert, shared by its layers. rule_out is LoRE: one a
    layer, shared by its experts. num_maps up maps share the hidden rows (MOP: keys and values).

    reading: "A", rule terms x terms and local (in/terms) x (out/terms); "B", rule (in/terms) x (out/terms) and local
    terms x terms. share_lorl=False: rule_in is each pair's own ("w/o LoRL"); share_lore=False: rule_out is ("w/o
    LoRE"). rule="full": one full rule ("w/o low-rank") for all layers and experts, or one a layer with
    rule_scope="layer"; the share flags and the rank then have no meaning. bias: "layer", "layer_expert" or None.
    init: "variance_matched", Var(W) = 2/(in + out); "compacter", rules N(0, 0.01^2), locals Glorot-uniform.

    forward(x, experts=None): x (n, d_in), or (num_experts, n, d_in) for rows of each expert's own; experts int64
    (k,), distinct. Returns num_maps tensors (num_layers, num_experts or k, n, d_out).
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
        device=None,
        dtype=None,
    ):
        super().__init__()
        _positive(
            num_layers=num_layers,
            num_experts=num_experts,
            d_in=d_in,
            d_mid=d_mid,
            d_out=d_out,
            num_maps=num_maps,
            terms_down=terms_down,
            terms_up=terms_up,
            rank=rank,
        )
        _one_of(
            reading=(reading, ("A", "B")),
            rule=(rule, ("low_rank", "full")),
            rule_scope=(rule_scope, ("global", "layer")),
            bias=(bias, ("layer", "layer_expert", None)),
            activation=(activation, tuple(ACTIVATIONS)),
            init=(init, INITS),
        )
        self.num_layers, self.num_experts = num_layers, num_experts
        self.d_in, self.d_mid, self.d_out, self.activation = d_in, d_mid, d_out, activation

        def factors(terms: int, side_in: int, side_out: int, names: tuple[str, str]) -> "_PHMFactors":
            outer = (_divide(names[0], side_in, "its terms", terms), _divide(names[1], side_out, "its terms", terms))
            square = (terms, terms)
            rule_sides, local_sides = (square, outer) if reading == "A" else (outer, square)
            groups = {
                "rule_in": (1 if share_lorl else num_layers, num_experts),
                "rule_out": (num_layers, 1 if share_lore else num_experts),
                "rule": (num_layers if rule_scope == "layer" else 1, 1),
                "local": (num_layers, num_experts),
                "bias": {"layer": (num_layers, 1), "layer_expert": (num_layers, num_experts), None: None}[bias],
            }
            return _PHMFactors(
                groups, terms, rule_sides, local_sides, rank if rule == "low_rank" else None, init, device, dtype
            )

        self.down = factors(terms_down, d_in, d_mid, ("d_in", "d_mid"))
        self.ups = nn.ModuleList(factors(terms_up, d_mid, d_out, ("d_mid", "d_out")) for _ in range(num_maps))

    def forward(self, x: Tensor, experts: Tensor | None = None) -> tuple[Tensor, ...]:
        if x.dim() not in (2, 3) or (x.dim() == 3 and x.shape[0] != self.num_experts):
            raise ValueError(
                f"x must have shape (n, {self.d_in}) or ({self.num_experts}, n, {self.d_in}); got {tuple(x.shape)}."
            )
        rows = x[None] if x.dim() == 3 else x[None, None]
        ups = [up.factors() for up in self.ups]
        return mop_ffn(rows, self.down.factors(), ups, activation=self.activation, experts=experts)

    def weight_matrix(self, layer: int, expert: int, map: str | int) -> Tensor:
        """The dense W of one pair, to look at: map "down" gives (d_in, d_mid), map k gives the k-th (d_mid, d_out)."""
        if map != "down" and map not in range(len(self.ups)):
            raise ValueError(f"map must be 'down' or an up map 0..{len(self.ups) - 1}; got {map!r}.")
        for name, value, size in (("layer", layer, self.num_layers), ("expert", expert, self.num_experts)):
            if value not in range(size):
                raise ValueError(f"{name} must lie in 0..{size - 1}; got {value!r}.")
        return (self.down if map == "down" else self.ups[map]).weight_matrix(layer, expert)

    def extra_repr(self) -> str:
        return (
            f"num_layers={self.num_layers}, num_experts={self.num_experts}, d_in={self.d_in}, d_mid={self.d_mid}, "
            f"d_out={self.d_out}, activation={self.activation!r}"
        )


class _PHMFactors(nn.Module):
    """The parameters of one map of MOPFeedForward, each with its leading group dims (layers|1, experts|1)."""

    def __init__(self, groups, terms, rule_sides, local_sides, rank, init, device, dtype):
        super().__init__()

        def parameter(group: Sequence[int], *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*group, *shape, device=device, dtype=dtype))

        (g_in, g_out), (loc_in, loc_out) = rule_sides, local_sides
        if rank is None:
            self.rule_in = parameter(groups["rule"], terms, g_in, g_out)
            self.register_parameter("rule_out", None)
        else:
            self.rule_in = parameter(groups["rule_in"], terms, g_in, rank)
            self.rule_out = parameter(groups["rule_out"], terms, rank, g_out)
        self.local = parameter(groups["local"], terms, loc_in, loc_out)
        bias = None if groups["bias"] is None else parameter(groups["bias"], g_out * loc_out)
        self.register_parameter("bias", bias)
        self.variance = 2 / (g_in * loc_in + g_out * loc_out)
        self.init = init
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        rules = [self.rule_in] if self.rule_out is None else [self.rule_in, self.rule_out]
        _init_factors(rules, [self.local], self.variance, self.init)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def factors(self) -> LowRankPHM:
        return LowRankPHM(self.rule_in, self.rule_out, self.local, self.bias)

    def weight_matrix(self, layer: int, expert: int) -> Tensor:
        def pick(tensor: Tensor) -> Tensor:
            return tensor[layer if tensor.shape[0] > 1 else 0, expert if tensor.shape[1] > 1 else 0]

        rule = pick(self.rule_in) if self.rule_out is None else pick(self.rule_in) @ pick(self.rule_out)
        return phm_weight(rule, pick(self.local))


def _init_factors(rules: list[Tensor], locals_: list[Tensor], variance: float, init: str) -> None:
    """Draw rule and local factors (one tensor, or the two of a low-rank product) in place.

    Each entry of W sums terms products of a rule entry and a local entry, so its variance is terms * Var(rule) *
    Var(local). The locals are Glorot-uniform with gain sqrt(2); "variance_matched" scales the rules to reach
    `variance`, with Var(rule_in) = Var(rule_out).
    """
    local_variance = 4 / (locals_[0].shape[-2] + locals_[-1].shape[-1])
    _draw(locals_, local_variance, lambda t: nn.init.uniform_(t, -1, 1))
    if init == "compacter":
        for rule in rules:
            nn.init.normal_(rule, std=COMPACTER_RULE_STD)
    else:
        _draw(rules, variance / (rules[0].shape[-3] * local_variance), nn.init.normal_)


def _draw(factors: list[Tensor], variance: float, fill) -> None:
    """Fill the factors, then scale them evenly so that their product's mean square is `variance` exactly.

    Rules are small: left to chance, the mean square of a 4 x 4 x 4 draw is off by 40 % often enough to matter.
    """
    for factor in factors:
        fill(factor)
    first, last = factors[0].float(), factors[-1].float()
    if len(factors) == 1:
        mean_square = first.square().mean()
    else:  # mean square of first @ last by their Gram matrices, which broadcast over groups at no cost
        grams = (first.mT @ first) * (last @ last.mT)
        mean_square = grams.sum((-2, -1)).mean() / (first.shape[-2] * last.shape[-1])
    scale = (variance / mean_square) ** (1 / (2 * len(factors)))
    for factor in factors:
        factor.mul_(scale)


def _split_by_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of that rank as left (..., m, rank) @ right (..., rank, n), the scale shared evenly."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * v[..., :rank, :]


def _divide(name: str, size: int, by_name: str, by: int) -> int:
    _positive(**{name: size})
    if not isinstance(by, int) or by < 1 or size % by:
        raise ValueError(f"{name} must be a multiple of {by_name}; got {size} and {by}.")
    return size // by


def _positive(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")


def _one_of(**choices) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def _known_init(init: str) -> str:
    _one_of(init=(init, INITS))
    return init
