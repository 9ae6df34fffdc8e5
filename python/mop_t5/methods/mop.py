"""MOP: a mixture of PHM experts generates the prefixes, one expert a scenario (MOP, Eqs. 1 to 5).

For expert x in layer l: P_K[l, x], P_V[l, x] = f(X' W_down[l, x] + b) W_up[l, x] + b, every W a sum of Kronecker
products with low-rank shared rules (mop_kernels.MOPFeedForward). X' is one matrix, shared by all layers and experts, so
the prefixes depend on the scenario only, never on the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from mop_kernels import MOPFeedForward
from mop_t5.additions import ATTENTIONS, Additions
from mop_t5.backbone import BackboneShape
from mop_t5.methods import register
from mop_t5.methods.base import Method, MethodConfig, check_bool, check_choice, check_int
from mop_t5.methods.mlp_generator import MLPGenerator

_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "tanh", "silu", "identity")
# "paper" fits Table 4 (2.514 % of T5-pegasus) with the text of section 2: Reading A, rank one, 16 and 8 terms
_PRESETS = {
    "paper": {
        "prefix_length": 40,
        "d_mid": 128,
        "terms_down": 16,
        "terms_up": 8,
        "rank": 1,
        "reading": "A",
        "routing": "scenario",
        "attention": ("decoder_self",),
        "bias": "layer",
        "activation": "relu",
    }
}


@dataclass(frozen=True)
class MOPConfig(MethodConfig):
    """Fields of the method "mop".

    scenarios: names of the scenarios, at least one; scenario s uses expert s.
    prefix_length: rows of the prefix, in every attention. 0 gives the plain model.
    d_mid: width of the hidden layer, of the experts and of the MLP generators.
    terms_down, terms_up: Kronecker terms p and q of the down and of the up maps. In Reading A they must divide the
        widths on both sides of their map: d_model and d_mid, d_mid and num_heads*d_kv. In Reading B too.
    rank: r of the rules, A_i = l_i e_i.
    reading: "A", rules terms x terms (Eq. 2); "B", locals terms x terms (section 2.2).
    routing: "scenario": an example uses the expert of its scenario, always.
    attention: which attentions get MOP, a subset of "encoder_self", "decoder_self", "cross". The others get the MLP
        generator of prefix-tuning, shared by all scenarios.
    num_experts: None for one a scenario; 1 for one that all scenarios share (a control).
    layers: indices of the layers that get MOP, in each attention named; the rest of these attentions get an MLP
        generator. None for all layers.
    rule: "low_rank", or "full": the ablation "w/o low-rank", rules trained directly and shared.
    rule_scope: for rule="full": one rule for all layers ("global") or one a layer ("layer").
    share_lorl: False is "w/o LoRL": an expert's left factor l is another one in each layer.
    share_lore: False is "w/o LoRE": a layer's right factor e is another one for each expert.
    bias: "layer", shared by the experts; "layer_expert"; or None.
    init: "variance_matched" starts the maps at the scale of a dense layer; "compacter" almost at zero.
    activation: of the experts: "relu", "gelu", "gelu_tanh", "tanh", "silu" or "identity".
    preset: "paper" sets the sizes behind the paper's Table 4; a field given another value than its default wins.
    """

    prefix_length: int = 40
    d_mid: int = 128
    terms_down: int = 16
    terms_up: int = 8
    rank: int = 1
    reading: str = "A"
    routing: str = "scenario"
    attention: tuple[str, ...] = ("decoder_self",)
    num_experts: int | None = None
    layers: tuple[int, ...] | None = None
    rule: str = "low_rank"
    rule_scope: str = "global"
    share_lorl: bool = True
    share_lore: bool = True
    bias: str | None = "layer"
    init: str = "variance_matched"
    activation: str = "relu"
    preset: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_choice("preset", self.preset, (None, *_PRESETS))
        for name, value in _PRESETS.get(self.preset, {}).items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                self._set(name, value)
        if not self.scenarios:
            raise ValueError("scenarios must name at least one scenario; got none. Pass scenarios=[...].")
        for name, minimum in (("prefix_length", 0), ("d_mid", 1), ("terms_down", 1), ("terms_up", 1), ("rank", 1)):
            check_int(name, getattr(self, name), minimum)
        for name, options in (
            ("reading", ("A", "B")),
            ("routing", ("scenario",)),
            ("rule", ("low_rank", "full")),
            ("rule_scope", ("global", "layer")),
            ("bias", ("layer", "layer_expert", None)),
            ("init", ("variance_matched", "compacter")),
            ("activation", _ACTIVATIONS),
        ):
            check_choice(name, getattr(self, name), options)
        check_bool("share_lorl", self.share_lorl)
        check_bool("share_lore", self.share_lore)
        self._set("attention", _check_attention(self.attention))
        if self.num_experts is not None:
            check_int("num_experts", self.num_experts, 1)
            if self.num_experts not in (1, len(self.scenarios)):
                raise ValueError(
                    f"num_experts must be None, {len(self.scenarios)} (one a scenario) or 1 (shared by all) where "
                    f"routing='scenario'; got {self.num_experts}."
                )
        if self.layers is not None:
            if not isinstance(self.layers, (list, tuple)):
                raise TypeError(f"layers must be a list of layer indices or None; got {self.layers!r}.")
            for layer in self.layers:
                check_int("layers", layer, 0)
            if not self.layers:
                raise ValueError("layers must name at least one layer; got none. Use None for all layers.")
            self._set("layers", tuple(sorted(set(self.layers))))

    def with_scenarios(self, scenarios) -> "MOPConfig":
        one_a_scenario = self.num_experts is not None and self.num_experts > 1
        return replace(self, scenarios=scenarios, num_experts=None if one_a_scenario else self.num_experts)

    @property
    def experts(self) -> int:
        return len(self.scenarios) if self.num_experts is None else self.num_experts

    def check_shape(self, shape: BackboneShape) -> None:
        """Raise ValueError if the terms do not divide the widths of this backbone, or a layer does not exist."""
        for terms, width, what in (
            ("terms_down", shape.d_model, "d_model"),
            ("terms_down", self.d_mid, "d_mid"),
            ("terms_up", self.d_mid, "d_mid"),
            ("terms_up", shape.inner, "num_heads*d_kv"),
        ):
            if width % getattr(self, terms):
                raise ValueError(
                    f"{terms} must divide {what} = {width}; got {getattr(self, terms)}. Choose another {terms}."
                )
        for attention in self.attention:
            last = shape.layers(attention) - 1
            if self.layers is not None and self.layers[-1] > last:
                raise ValueError(f"layers must lie in 0 to {last} for {attention}; got {self.layers[-1]}.")


def _check_attention(value) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(f"attention must be a list of names out of {', '.join(ATTENTIONS)}; got {value!r}.")
    unknown = sorted(str(a) for a in value if a not in ATTENTIONS)
    if unknown or not value:
        raise ValueError(
            f"attention must be a non-empty subset of {', '.join(ATTENTIONS)}; got {', '.join(unknown) or 'none'}. "
            "For no MOP at all use the method 'prefix_tuning'."
        )
    return tuple(a for a in ATTENTIONS if a in value)


@register
class MOP(Method):
    """The experts of the named attentions, the MLP generators of the others, and X'."""

    name = "mop"
    Config = MOPConfig

    def __init__(self, config: MOPConfig, shape: BackboneShape, device=None, dtype=None):
        config.check_shape(shape)
        super().__init__(config, shape)
        c = config
        self.input = nn.Parameter(torch.empty(c.prefix_length, shape.d_model, device=device, dtype=dtype))  # X'
        nn.init.normal_(self.input)
        self.experts = nn.ModuleDict()
        self.generators = nn.ModuleDict()
        for attention in ATTENTIONS:
            mop_layers = self._mop_layers(attention)
            if mop_layers:
                self.experts[attention] = MOPFeedForward(
                    num_layers=len(mop_layers),
                    num_experts=c.experts,
                    d_in=shape.d_model,
                    d_mid=c.d_mid,
                    d_out=shape.inner,
                    num_maps=2,
                    terms_down=c.terms_down,
                    terms_up=c.terms_up,
                    rank=c.rank,
                    reading=c.reading,
                    share_lorl=c.share_lorl,
                    share_lore=c.share_lore,
                    rule=c.rule,
                    rule_scope=c.rule_scope,
                    bias=c.bias,
                    activation=c.activation,
                    init=c.init,
                    device=device,
                    dtype=dtype,
                )
            rest = shape.layers(attention) - len(mop_layers)
            if rest:
                self.generators[attention] = MLPGenerator(
                    shape, rest, c.prefix_length, c.d_mid, "tanh", 0.0, device, dtype
                )

    def _mop_layers(self, attention: str) -> tuple[int, ...]:
        if attention not in self.config.attention:
            return ()
        return tuple(range(self.shape.layers(attention))) if self.config.layers is None else self.config.layers

    @property
    def distinguishes_scenarios(self) -> bool:
        return self.config.experts > 1

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        active = self._active_experts(scenario_ids)
        prefixes = {}
        for attention in ATTENTIONS:
            generated = iter(self.generators[attention].pairs() if attention in self.generators else ())
            mop_layers = self._mop_layers(attention)
            by_experts = iter(self._expert_pairs(attention, active) if mop_layers else ())
            layers = range(self.shape.layers(attention))
            prefixes[attention] = tuple(next(by_experts if layer in mop_layers else generated) for layer in layers)
        return Additions(prefixes, active)

    def _expert_pairs(self, attention: str, active: torch.Tensor | None) -> tuple:
        """One (keys, values) a layer, each (experts or active, heads, prefix, d_kv)."""
        keys, values = self.experts[attention](self.input, experts=active)  # each (layers, experts, prefix, inner)
        if self.trained_scenarios is not None and torch.is_grad_enabled():
            keys, values = (self._without_gradients_of_others(rows, active) for rows in (keys, values))
        heads = (self.shape.num_heads, self.shape.d_kv)
        # contiguous: one copy here, not one in every layer at every decoding step
        per_layer = (rows.unflatten(-1, heads).transpose(2, 3).contiguous().unbind(0) for rows in (keys, values))
        return tuple(zip(*per_layer, strict=True))

    def _without_gradients_of_others(self, rows: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        here = torch.arange(rows.shape[1], device=rows.device) if active is None else active
        trained = torch.isin(here, torch.tensor(self.trained_scenarios, device=rows.device))
        return torch.where(trained[None, :, None, None], rows, rows.detach())

    def _active_experts(self, scenario_ids: torch.Tensor | None) -> torch.Tensor | None:
        """The experts that the batch needs, ascending, or None to run all of them.

        On an accelerator the host would have to wait to learn which these are; while training that costs more than a
        bank of moderate size.
        """
        experts = self.config.experts
        if scenario_ids is None or experts == 1 or torch.compiler.is_compiling() or scenario_ids.is_meta:
            return None
        if scenario_ids.device.type != "cpu" and torch.is_grad_enabled() and experts <= 64:
            return None
        active = torch.unique(scenario_ids)
        return None if len(active) == experts else active

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        own = [p for p, _ in self.expert_parameters()]
        ids = {id(p) for p in own}
        return {
            "experts": own,
            "shared": [self.input, *(p for p in self.experts.parameters() if id(p) not in ids)],
            "generators": list(self.generators.parameters()),
        }

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        # parameters of MOPFeedForward lead with (layers or 1, experts or 1); an expert that is alone is never absent
        if self.config.experts == 1:
            return
        for parameter in self.experts.parameters():
            if parameter.shape[1] == self.config.experts:
                yield parameter, 1
