"""The additions of a method to a T5 for one batch (prefixes, a prompt, adapters, experts, a loss), and their places.

`Method.additions` makes them at the start of a forward pass. They travel through the model as the keyword argument
`mop_additions` and never as state on modules.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from mop_t5.attachment.mixture import Mixture

STACKS = ("encoder", "decoder")
ATTENTIONS = ("encoder_self", "decoder_self", "cross")
# (stack, place) of the sub-layers whose output an adapter can change
PLACES = tuple(
    (stack, place)
    for stack in STACKS
    for place in ("self_attention", "cross_attention", "feed_forward")
    if (stack, place) != ("encoder", "cross_attention")
)
HEAD = ("decoder", "lm_head")
_ATTENTION_MAPS = ("q", "k", "v", "layer_norm")
# (stack, place) of outputs inside the sub-layers, and of the head: an adapter can change these, too. Feed-forward
# networks have the map wi, or wi_0 and wi_1 where they are gated.
INNER_PLACES = (
    *(
        (stack, f"{place}_{part}")
        for stack, place in PLACES
        for part in (("wi", "wi_0", "wi_1", "layer_norm") if place == "feed_forward" else _ATTENTION_MAPS)
    ),
    HEAD,
)

# keys and values, each (rows, heads, prefix, d_kv)
Prefix: TypeAlias = tuple[Tensor, Tensor]
# (hidden (batch, tokens, width), scenario_ids (batch,) or None) -> the new hidden
Adapter: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
# (embeddings (batch, source, d_model), mask (batch, source) or None, scenario_ids or None) -> longer embeddings
Prompt: TypeAlias = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class Additions:
    """The additions of one batch.

    Neither a tensor nor a module, so `generate` does not repeat it for beams and nothing enters a state_dict. If
    `device` is set, layers on other devices get copies of their prefixes, and adapters get copies of hidden states.

    Args:
        prefixes: Attention -> one (keys, values) per layer, each (rows, heads, prefix, d_kv), or None for a layer
            without a prefix. An attention without an entry has no prefix. rows is 1 where all scenarios share the
            prefix.
        scenarios: (rows,) the scenario of each prefix row, ascending. None: row s belongs to scenario s.
        prompt: Function that puts a prompt on the left of the embeddings: (batch, prompt + source, d_model). The
            encoder runs on the result, and the decoder attends to all outputs of the encoder.
        adapters: (stack, place) -> one function per layer, or None for a layer without one. The place is one of PLACES:
            hidden is the output of the sub-layer before its dropout and residual. Or it is one of INNER_PLACES; the
            head counts as one layer. The function returns the replacement of hidden.
        dtype: The dtype in which the adapters receive hidden states and compute. None: the dtype of the backbone, but
            at least float32.
        experts: The experts of the blocks named by the method's expert_places, or None.
        loss: Scalar that training adds to the model's loss, or None.

    Raises:
        ValueError: prefixes or adapters has an unknown key.
    """

    def __init__(
        self,
        prefixes: Mapping[str, Sequence[Prefix | None]] | None = None,
        scenarios: Tensor | None = None,
        *,
        prompt: Prompt | None = None,
        adapters: Mapping[tuple[str, str], Sequence[Adapter | None]] | None = None,
        dtype: torch.dtype | None = None,
        experts: Mixture | None = None,
        loss: Tensor | None = None,
    ):
        self.prefixes, self.adapters = dict(prefixes or {}), dict(adapters or {})
        self.scenarios, self.prompt, self.dtype, self.experts, self.loss = scenarios, prompt, dtype, experts, loss
        self.device: torch.device | None = None  # of the tensors, where the layers lie on several devices
        self._copies: dict[tuple[str, int, torch.device], Prefix] = {}
        places = PLACES + INNER_PLACES
        for name, given, known in (("prefixes", self.prefixes, ATTENTIONS), ("adapters", self.adapters, places)):
            if unknown := ", ".join(sorted(str(key) for key in set(given) - set(known))):
                raise ValueError(f"{name} has unknown keys {unknown}; expected a subset of {known}.")

    def prefix(self, attention: str, layer: int, device: torch.device | None = None) -> Prefix | None:
        """Return keys and values of one attention, on a device if `self.device` is set. None if there is no prefix."""
        layers = self.prefixes.get(attention)
        pair = None if layers is None else layers[layer]
        if pair is None or self.device is None or device is None or pair[0].device == device:
            return pair
        place = (attention, layer, device)
        if place not in self._copies:  # generate uses the same additions at every step
            self._copies[place] = (pair[0].to(device), pair[1].to(device))
        return self._copies[place]

    def adapter(self, stack: str, place: str, layer: int) -> Adapter | None:
        """Return the adapter at one place of one layer, or None."""
        layers = self.adapters.get((stack, place))
        return None if layers is None else layers[layer]

    def check_holds(self, scenario_ids: Tensor | None) -> None:
        """Raise ValueError if the batch has a scenario that these additions were not made for."""
        if self.scenarios is None or scenario_ids is None:
            return
        if missing := sorted(set(scenario_ids.tolist()) - set(self.scenarios.tolist())):
            raise ValueError(
                f"mop_additions was made for scenarios {self.scenarios.tolist()}, but scenario_ids asks for {missing}. "
                "Make it with model.mop.additions(scenario_ids) for this batch, or model.mop.additions() for all."
            )


def called_alone(what: str) -> RuntimeError:
    """Return the error about an attention, a sub-layer or a block that was called without Additions.

    what: The part of the model, and what it lacks.
    """
    return RuntimeError(
        f"{what}. Call the model itself, or pass mop_additions=model.mop.additions() and scenario_ids to the encoder "
        "or decoder."
    )


def row_index(scenarios: Tensor | None, scenario_ids: Tensor | None, rows: int) -> Tensor | None:
    """Return which of the rows, made for `scenarios`, each example takes: (batch,). None where one row serves all."""
    if rows == 1:
        return None
    if scenario_ids is None:
        raise RuntimeError(f"scenario_ids is missing, but the method differs between {rows} scenarios.")
    return scenario_ids if scenarios is None else torch.searchsorted(scenarios.to(scenario_ids.device), scenario_ids)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or `dtype` itself if float32 cannot hold its values."""
    return torch.promote_types(dtype, torch.float32)
