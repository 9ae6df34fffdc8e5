"""Prefixes without the network that made them: the result of mop_t5.export on a trained prefix method.

A prefix depends on the scenario only, never on the text (MOP, Eq. 4), so once training is over its keys and values are
a table. It needs no kernels: loading it imports torch and transformers alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import ATTENTIONS, Additions, Prefix
from mop_t5.attachment.method import Method, MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least
from mop_t5.methods import register
from mop_t5.methods.parts.modules import ModuleDictOf, ModuleListOf


@dataclass(frozen=True)
class FixedPrefixConfig(MethodConfig):
    """Fields of the method "fixed_prefix".

    Args:
        scenarios: names of the scenarios.
        prefix_length: rows of the prefix, in every attention.
        rows: attention -> number of prefixes in each of its layers: one per scenario, 1 for all, or 0 for a layer
            without a prefix. An attention that is not named has no prefix.
        layer_norms: True if the folder also has LayerNorms of the backbone, as hyper_prefix trains them.
    """

    prefix_length: Annotated[int, at_least(0)] = 40
    rows: dict[str, list[int]] | None = None
    layer_norms: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.rows or not set(self.rows) <= set(ATTENTIONS):
            raise ValueError(
                f"rows must be a dict of numbers of prefixes, by attention out of {', '.join(ATTENTIONS)}; got "
                f"{self.rows!r}. Use mop_t5.export, which makes this config of a trained prefix method."
            )
        for layers in self.rows.values():
            if any(count not in (0, 1, len(self.scenarios)) for count in layers):
                raise ValueError(
                    f"rows must be a list of 0, 1 or {len(self.scenarios)}, the number of scenarios; got {layers!r}."
                )

    def with_scenarios(self, scenarios: Sequence[str]) -> "FixedPrefixConfig":
        """Raise ValueError: the prefixes of a new scenario are not known."""
        raise ValueError("an exported prefix has the scenarios it was made for. Change the method's and export again.")


class _Pair(nn.Module):
    """Keys and values of one attention, each (rows, heads, prefix, d_kv)."""

    keys: Tensor
    values: Tensor

    def __init__(self, *size: int, **where: Unpack[Where]):
        super().__init__()
        self.register_buffer("keys", torch.empty(size, **where))
        self.register_buffer("values", torch.empty(size, **where))

    def of(self, needed: Tensor | None) -> Prefix:
        """Return the rows of the scenarios `needed`; all rows if it is None or if one row serves all."""
        everything = needed is None or len(self.keys) == 1
        return (self.keys, self.values) if everything else (self.keys[needed], self.values[needed])


@register
class FixedPrefix(Method[FixedPrefixConfig]):
    """Stored prefixes. The keys and values are buffers, so they are not trained."""

    name = "fixed_prefix"
    Config = FixedPrefixConfig
    groups: ClassVar = {"prefixes": ("prefixes",)}  # an empty group: the prefixes are buffers
    attachable = False

    def __init__(self, config: FixedPrefixConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        self.prefixes: ModuleDictOf[ModuleListOf[_Pair]] = ModuleDictOf()
        for attention, rows in (config.rows or {}).items():
            self.distinguishes_scenarios |= max(rows, default=1) > 1
            if len(rows) != shape.layers(attention):
                raise ValueError(f"rows must name {shape.layers(attention)} layers of {attention}; got {len(rows)}.")
            size = (shape.num_heads, config.prefix_length, shape.d_kv)
            self.prefixes[attention] = ModuleListOf(_Pair(count, *size, **where) for count in rows)

    def initialise(self, model: T5) -> None:
        """Raise ValueError: there is nothing to start from."""
        raise ValueError("fixed_prefix has nothing to start from: mop_t5.export makes it of a trained prefix method.")

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the prefixes of the scenarios of a batch."""
        needed = self.needed_scenarios(scenario_ids)
        prefixes = {
            attention: tuple(pair.of(needed) if len(pair.keys) else None for pair in pairs)
            for attention, pairs in self.prefixes.items()
        }
        return Additions(prefixes, needed)
