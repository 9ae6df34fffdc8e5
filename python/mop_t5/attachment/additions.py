"""What a method adds to a T5 for one batch: prefixes, a prompt, adapters, experts, a loss.

Made by `Method.additions` at the start of a forward pass, it travels through the model as the keyword argument
`mop_additions` and never as state on modules.
"""

from collections.abc import Callable, Mapping

import torch

from mop_t5.attachment.mixture import Mixture
from mop_t5.attachment.places import ATTENTIONS, INNER_PLACES, PLACES


class Additions:
    """Neither a tensor nor a module, so `generate` does not repeat it for beams and nothing enters a state_dict.

    prefixes: {attention: one (keys, values) a layer}, each (rows, heads, prefix, d_kv). An attention that is not named
        has no prefix. rows is 1 where all scenarios share the prefix.
    scenarios: (rows,) the scenario of each prefix row, ascending, or None: row s belongs to scenario s.
    prompt: function of (embeddings (batch, source, d_model), mask (batch, source) or None, scenario_ids (batch,) or
        None) that gives longer embeddings (batch, prompt + source, d_model), the prompt on the left. The encoder runs
        on them, and the decoder attends to all of its outputs.
    adapters: {(stack, place): one function a layer, or None for none there}, stack and place out of PLACES, where
        hidden is the output of the sub-layer before its dropout and residual, or out of INNER_PLACES (the head counts
        as one layer). Each takes (hidden (batch, tokens, width), scenario_ids) and gives what replaces hidden.
    dtype: the dtype in which the adapters compute; hidden states come in it. None: that of the backbone, but at least
        float32.
    experts: what the blocks named by the method's expert_places run, or None where there are none.
    loss: scalar that is added to the model's loss in training, or None.
    """

    def __init__(
        self,
        prefixes: Mapping[str, tuple] | None = None,
        scenarios: torch.Tensor | None = None,
        *,
        prompt: Callable | None = None,
        adapters: Mapping[tuple[str, str], tuple] | None = None,
        dtype: torch.dtype | None = None,
        experts: Mixture | None = None,
        loss: torch.Tensor | None = None,
    ):
        self.prefixes, self.adapters = dict(prefixes or {}), dict(adapters or {})
        self.scenarios, self.prompt, self.dtype, self.experts, self.loss = scenarios, prompt, dtype, experts, loss
        places = PLACES + INNER_PLACES
        for argument, given, known in (("prefixes", self.prefixes, ATTENTIONS), ("adapters", self.adapters, places)):
            unknown = sorted(map(str, set(given) - set(known)))
            if unknown:
                raise ValueError(f"{argument} has unknown keys {', '.join(unknown)}; expected a subset of {known}.")

    def prefix(self, attention: str, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(keys, values) of one attention, or None."""
        layers = self.prefixes.get(attention)
        return None if layers is None else layers[layer]

    def adapter(self, stack: str, place: str, layer: int) -> Callable | None:
        layers = self.adapters.get((stack, place))
        return None if layers is None else layers[layer]

    def precision(self, hidden: torch.Tensor) -> torch.dtype:
        """The dtype in which the adapters take these hidden states."""
        return self.dtype or wide(hidden.dtype)

    def row_index(self, scenario_ids: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        """(batch,) the prefix row of each example, or None where one row serves the whole batch."""
        return row_index(self.scenarios, scenario_ids, rows)

    def check_holds(self, scenario_ids: torch.Tensor | None) -> None:
        """Raise ValueError if a scenario of the batch is not among those this object was made for."""
        if self.scenarios is None or scenario_ids is None:
            return
        missing = sorted(set(scenario_ids.tolist()) - set(self.scenarios.tolist()))
        if missing:
            raise ValueError(
                f"mop_additions was made for scenarios {self.scenarios.tolist()}, but scenario_ids asks for {missing}. "
                "Make it with model.mop.additions(scenario_ids) for this batch, or model.mop.additions() for all."
            )


def row_index(scenarios: torch.Tensor | None, scenario_ids: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """(batch,) which of the rows, made for these scenarios, each example takes; None where one serves them all."""
    if rows == 1:
        return None
    if scenario_ids is None:
        raise RuntimeError(f"scenario_ids is missing, but the method differs between {rows} scenarios.")
    return scenario_ids if scenarios is None else torch.searchsorted(scenarios, scenario_ids)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype that loses nothing of this one and is no narrower than float32."""
    return torch.promote_types(dtype, torch.float32)
