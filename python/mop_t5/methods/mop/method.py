"""MOP: a mixture of PHM experts generates the prefixes, one expert per scenario (MOP, Eqs. 1 to 5).

For expert x in layer l: P_K[l, x], P_V[l, x] = f(X' W_down[l, x] + b) W_up[l, x] + b, every W a sum of Kronecker
products with low-rank shared rules (mop_kernels.MOPFeedForward). X' is one matrix, shared by all layers and experts, so
the prefixes depend on the scenario only, never on the text. With routing="xmoe_top2" gates mix the experts of each row
of X' instead, and all scenarios share the prefixes.
"""

import itertools
from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor, nn

from mop_kernels import MOPFeedForward
from mop_t5.attachment.additions import ATTENTIONS, Additions, Prefix
from mop_t5.attachment.method import Method, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.methods import register
from mop_t5.methods.mop.config import MOPConfig
from mop_t5.methods.mop.routing import ResidualNorm, Top2Gate
from mop_t5.methods.parts.mlp_generator import MLPGenerator
from mop_t5.methods.parts.modules import ModuleDictOf

__all__ = ["MOP", "MOPConfig"]

# fields of the config that are arguments of MOPFeedForward under the same name
_BANK_FIELDS = (
    *("d_mid", "terms_down", "terms_up", "rank", "reading", "rule", "rule_scope"),
    *("share_lorl", "share_lore", "drop_lorl", "bias", "activation", "init"),
)


@register
class MOP(Method[MOPConfig]):
    """The experts of the named attentions, the MLP generators of the others (if they have a prefix), and X'."""

    name = "mop"
    Config = MOPConfig

    def __init__(self, config: MOPConfig, shape: BackboneShape, **where: Unpack[Where]):
        config.check_shape(shape)
        super().__init__(config, shape)
        c = config
        self.distinguishes_scenarios = c.experts > 1 and not c.routed
        scope = (c.experts,) if c.input_scope == "expert" else ()
        self.input = nn.Parameter(torch.randn(*scope, c.prefix_length, shape.d_model, **where))  # X'
        dropout = 0.0 if c.routed else c.dropout  # with gates it acts in ResidualNorm
        self.dropout = nn.Dropout(dropout)
        self.experts: ModuleDictOf[MOPFeedForward] = ModuleDictOf()
        self.value_experts: ModuleDictOf[MOPFeedForward] = ModuleDictOf()  # for kv_maps="separate_down"
        self.generators: ModuleDictOf[MLPGenerator] = ModuleDictOf()
        self.gates: ModuleDictOf[Top2Gate] = ModuleDictOf()
        self.norms: ModuleDictOf[ResidualNorm] = ModuleDictOf()
        for attention in ATTENTIONS:
            layers, mop_layers = shape.layers(attention), len(c.mop_layers(attention, shape))
            if mop_layers:
                self.experts[attention] = self._bank(mop_layers, **where)
                if c.kv_maps == "separate_down":
                    self.value_experts[attention] = self._bank(mop_layers, **where)
                if c.routed:
                    self.gates[attention] = Top2Gate(mop_layers, c.experts, shape.d_model, **where)
            if layers > mop_layers and c.others == "mlp":
                # with gates, the other layers of an attention are generated from X', too
                own_rows = None if c.routed and mop_layers else c.prefix_length
                self.generators[attention] = MLPGenerator(
                    shape, layers - mop_layers, own_rows, c.d_mid, c.generator_activation, dropout, **where
                )
            if c.routed and (mop_layers or attention in self.generators):
                self.norms[attention] = ResidualNorm(shape, c.dropout, **where)

    def _bank(self, layers: int, **where: Unpack[Where]) -> MOPFeedForward:
        c, inner = self.config, self.shape.inner
        d_out, num_maps = {"separate": (inner, 2), "joint": (2 * inner, 1), "separate_down": (inner, 1)}[c.kv_maps]
        return MOPFeedForward(
            num_layers=layers,
            num_experts=c.experts,
            d_in=self.shape.d_model,
            d_out=d_out,
            num_maps=num_maps,
            **{name: getattr(c, name) for name in _BANK_FIELDS},
            **where,
        )

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the prefixes of the attentions, and in training the loss that balances routed experts."""
        active = self.needed_scenarios(scenario_ids)
        prefixes: dict[str, tuple[Prefix | None, ...]] = {}
        balance = []
        for attention in ATTENTIONS:
            layers = self.config.mop_layers(attention, self.shape)
            by_experts: Iterator[Prefix] = iter(())
            by_others: Iterator[Prefix | None] = itertools.repeat(None)
            if layers:
                keys, values = self._expert_rows(attention, active)
                if attention in self.gates:
                    # compute all experts, because the rows of a prefix use most of them
                    weights, loss = self.gates[attention](self.input)
                    keys, values = (torch.einsum("lne,lenk->lnk", weights, rows)[:, None] for rows in (keys, values))
                    balance.append(loss)
                by_experts = self._pairs(attention, self._heads(keys), self._heads(values), self.input)
            if attention in self.generators:
                generator = self.generators[attention]
                rows: Tensor = self.input if generator.embedding is None else generator.embedding
                keys, values = generator(rows).unbind(1)
                by_others = self._pairs(attention, keys, values, rows)
            if layers or attention in self.generators:
                prefixes[attention] = tuple(
                    next(by_experts if layer in layers else by_others) for layer in range(self.shape.layers(attention))
                )
        loss = self.config.balance_weight * sum(balance[1:], balance[0]) if balance and self.training else None
        return Additions(prefixes, active, loss=loss)

    def _expert_rows(self, attention: str, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return keys and values, each (layers, experts or active, prefix, inner)."""
        banks = [banks[attention] for banks in (self.experts, self.value_experts) if attention in banks]
        maps = [rows for bank in banks for rows in bank(self.input, experts=active)]
        keys, values = maps[0].chunk(2, dim=-1) if self.config.kv_maps == "joint" else maps
        keys, values = (self.only_trained(rows, active, dim=1) for rows in (keys, values))
        return self.dropout(keys), self.dropout(values)

    def _heads(self, rows: Tensor) -> Tensor:
        """Split heads: (layers, rows, prefix, inner) -> (layers, rows, heads, prefix, d_kv)."""
        # contiguous: one copy here, not one in every layer at every decoding step
        return rows.unflatten(-1, (self.shape.num_heads, self.shape.d_kv)).transpose(2, 3).contiguous()

    def _pairs(self, attention: str, keys: Tensor, values: Tensor, rows: Tensor) -> Iterator[Prefix]:
        """Return one (keys, values) per layer, of (layers, ...) generated from rows."""
        if attention in self.norms:
            keys, values = (self.norms[attention](generated, rows) for generated in (keys, values))
        return zip(keys.unbind(0), values.unbind(0), strict=True)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the groups "experts", "shared" (by the experts) and "generators"."""
        own: list[nn.Parameter] = []
        if self.config.experts > 1:
            own += [self.input] if self.config.input_scope == "expert" else []
            for banks in (self.experts, self.value_experts):  # their shapes begin with (layers or 1, experts or 1)
                own += [p for p in banks.parameters() if p.shape[1] == self.config.experts]
        generators = list(self.generators.parameters())
        ids = {id(p) for p in own + generators}
        shared = [p for p in self.parameters() if id(p) not in ids]
        return {"experts": own, "shared": shared, "generators": generators}
