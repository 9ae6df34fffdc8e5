"""The config of the method "mop": fields, presets, checks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from mop_t5.attachment.additions import ATTENTIONS
from mop_t5.attachment.method import MethodConfig
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, check_least, check_some_scenario, check_subset, one_of, within
from mop_t5.methods.parts.mlp_generator import ACTIVATIONS as GENERATOR_ACTIVATIONS

_PRESETS = {
    # the defaults fit Table 4 (2.514 % of T5-pegasus) with the text of section 2: Reading A, rank one, 16 and 8 terms
    "paper": {},
    # public code that is very probably the authors' own, and that fits Table 4 as well
    "xmoe_top2": {
        "terms_down": 32,
        "terms_up": 32,
        "routing": "xmoe_top2",
        "num_experts": 8,
        "bias": "layer_expert",
        "generator_activation": "relu",
        "init": "zero_up",
    },
}


@dataclass(frozen=True)
class MOPConfig(MethodConfig):
    """Fields of the method "mop".

    Args:
        scenarios: names of the scenarios. routing="scenario" needs at least one; scenario s uses expert s.
        prefix_length: rows of the prefix, in every attention. 0 gives the plain model.
        d_mid: width of the hidden layer, of the experts and of the MLP generators.
        terms_down: Kronecker terms p of the down maps. They must divide d_model and d_mid.
        terms_up: Kronecker terms q of the up maps. They must divide d_mid and num_heads*d_kv.
        rank: r of the rules, A_i = l_i e_i.
        reading: "A", rules terms x terms (Eq. 2); "B", locals terms x terms (section 2.2).
        routing: "scenario": an example always uses the expert of its scenario. "xmoe_top2": a gate sends each prefix
            row to two experts, independent of the scenario. X' is added to the keys and values of every layer, which
            then pass a LayerNorm, and a loss balances the experts. It needs num_heads*d_kv = d_model. It implies
            preset="xmoe_top2" unless preset="paper" is given.
        attention: the attentions that get MOP, a subset of "encoder_self", "decoder_self", "cross".
        others: what the attentions that `attention` does not name get, and the layers that `layers` does not name.
            "mlp": the MLP generator of prefix-tuning, shared by all scenarios. "none": no prefix, so nothing is trained
            there.
        num_experts: None: one expert per scenario. 1: one expert that all scenarios share (a control). With
            routing="xmoe_top2": any number from 2; None means 8.
        layers: indices of the layers that get MOP, in each attention named in `attention`. None: all layers; with
            routing="xmoe_top2" the last half of the layers.
        kv_maps: "separate": an up map for keys and an up map for values on the same hidden rows. "joint": one up map of
            twice the width, whose first half are the keys. "separate_down": two down maps and two up maps.
        input_scope: "shared", X' is one matrix; "expert", each expert has its own.
        rule: "low_rank"; "full", the ablation "w/o low-rank", rules trained directly and shared; "dense", experts
            without Kronecker products, plain matrices (Eq. 1): a control.
        rule_scope: for rule="full": "global": one rule for all layers and experts. "layer": one rule per layer.
            "layer_expert": one rule per layer and expert ("w/o both" with rules of full rank).
        share_lorl: False is "w/o LoRL": an expert has its own left factor l in each layer.
        drop_lorl: True is the other meaning of "w/o LoRL": l is fixed to ones.
        share_lore: False is "w/o LoRE": a layer has its own right factor e for each expert.
        bias: "layer": one bias per layer, shared by the experts. "expert": one per expert, shared by the layers.
            "layer_expert": one per layer and expert. None: no bias.
        init: "variance_matched" starts the maps at the scale of a dense layer. "compacter" starts them almost at zero.
            "zero_up" starts with up maps of zero, so that experts add nothing at first.
        activation: of the experts: "relu", "gelu", "gelu_tanh", "tanh", "silu" or "identity".
        generator_activation: of the MLP generators: "tanh", "relu", "gelu", "silu" or "identity".
        dropout: probability, of the generated keys and values.
        balance_weight: of the loss that balances the experts, where routing="xmoe_top2".
        preset: "paper" sets the sizes behind the paper's Table 4 as its text describes MOP; "xmoe_top2" sets the sizes
            of public code that is very probably the authors'. Fields that you set override the preset (a default value
            does not).
    """

    prefix_length: Annotated[int, at_least(0)] = 40
    d_mid: Annotated[int, at_least(1)] = 128
    terms_down: Annotated[int, at_least(1)] = 16
    terms_up: Annotated[int, at_least(1)] = 8
    rank: Annotated[int, at_least(1)] = 1
    reading: Annotated[str, one_of("A", "B")] = "A"
    routing: Annotated[str, one_of("scenario", "xmoe_top2")] = "scenario"
    attention: tuple[str, ...] = ("decoder_self",)
    others: Annotated[str, one_of("mlp", "none")] = "mlp"
    num_experts: int | None = None
    layers: Annotated[tuple[int, ...] | None, at_least(0)] = None
    kv_maps: Annotated[str, one_of("separate", "joint", "separate_down")] = "separate"
    input_scope: Annotated[str, one_of("shared", "expert")] = "shared"
    rule: Annotated[str, one_of("low_rank", "full", "dense")] = "low_rank"
    rule_scope: Annotated[str, one_of("global", "layer", "layer_expert")] = "global"
    share_lorl: bool = True
    drop_lorl: bool = False
    share_lore: bool = True
    bias: Annotated[str | None, one_of("layer", "expert", "layer_expert", None)] = "layer"
    init: Annotated[str, one_of("variance_matched", "compacter", "zero_up")] = "variance_matched"
    activation: Annotated[str, one_of("relu", "gelu", "gelu_tanh", "tanh", "silu", "identity")] = "relu"
    generator_activation: Annotated[str, one_of(*GENERATOR_ACTIVATIONS)] = "tanh"
    dropout: Annotated[float, within(0, below=1)] = 0.0
    balance_weight: Annotated[float, within(0)] = 2.0
    preset: str | None = None

    def __post_init__(self):
        if isinstance(self.attention, (set, frozenset)):
            self._set("attention", tuple(self.attention))
        super().__post_init__()
        self._fill_in(_PRESETS, self.preset, otherwise=self.routing)
        hint = " For no MOP at all use the method 'prefix_tuning'."
        self._set("attention", check_subset("attention", self.attention, ATTENTIONS, hint))
        self._check_experts()
        if self.layers is not None:
            if not self.layers:
                raise ValueError("layers must name at least one layer; got none. Use None for all layers.")
            self._set("layers", tuple(sorted(set(self.layers))))

    def _check_experts(self) -> None:
        if self.routed:
            if self.num_experts is None:
                self._set("num_experts", 8)
            check_least(self, 2, "num_experts")
            if self.input_scope == "expert":
                raise ValueError(
                    "input_scope must be 'shared' where routing='xmoe_top2', whose gates route the rows of one X'; got "
                    "'expert'."
                )
            return
        check_some_scenario(self.scenarios)
        if self.num_experts is not None:
            check_least(self, 1, "num_experts")
            if self.num_experts not in (1, len(self.scenarios)):
                raise ValueError(
                    f"num_experts must be None, {len(self.scenarios)} (one per scenario) or 1 (shared by all) where "
                    f"routing='scenario'; got {self.num_experts}."
                )

    def with_scenarios(self, scenarios: Sequence[str]) -> "MOPConfig":
        """Return the same config for other scenarios. One expert per scenario stays one expert per scenario."""
        one_a_scenario = not self.routed and self.num_experts is not None and self.num_experts > 1
        return replace(self, scenarios=tuple(scenarios), num_experts=None if one_a_scenario else self.num_experts)

    @property
    def routed(self) -> bool:
        """True if a gate, not the scenario, chooses the experts."""
        return self.routing == "xmoe_top2"

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.scenarios) if self.num_experts is None else self.num_experts

    def mop_layers(self, attention: str, shape: BackboneShape) -> tuple[int, ...]:
        """Return the indices of the layers of this attention that get MOP, ascending."""
        if attention not in self.attention:
            return ()
        count = shape.layers(attention)
        return tuple(range(count // 2 if self.routed else 0, count)) if self.layers is None else self.layers

    def check_shape(self, shape: BackboneShape) -> None:
        """Raise ValueError if the terms do not divide the widths of this backbone, or a layer does not exist."""
        width_out, out = (2, "2*num_heads*d_kv") if self.kv_maps == "joint" else (1, "num_heads*d_kv")
        for terms, width, name in (
            ("terms_down", shape.d_model, "d_model"),
            ("terms_down", self.d_mid, "d_mid"),
            ("terms_up", self.d_mid, "d_mid"),
            ("terms_up", width_out * shape.inner, out),
        ):
            if width % getattr(self, terms) and self.rule != "dense":
                raise ValueError(
                    f"{terms} must divide {name} = {width}; got {getattr(self, terms)}. Choose another {terms}."
                )
        if self.routed and shape.inner != shape.d_model:
            raise ValueError(
                "routing='xmoe_top2' adds X' to the keys and values, so num_heads*d_kv must be d_model = "
                f"{shape.d_model}; got {shape.inner}. Use routing='scenario' with this backbone."
            )
        for attention in self.attention:
            last = shape.layers(attention) - 1
            if self.layers is not None and self.layers[-1] > last:
                raise ValueError(f"layers must lie in 0 to {last} for {attention}; got {self.layers[-1]}.")
