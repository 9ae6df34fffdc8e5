"""Export of a trained method for use without the method.

export   writes the keys and values of a prefix method into an adapter folder.
squeeze  turns a task-level mixture of experts into a plain T5. Each layer keeps the expert with the largest weight.
"""

import copy
import os
from typing import NamedTuple, cast

import torch
from transformers import PreTrainedModel
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.attached_model import SUBMODULE, attached, is_attached, unwrapped
from mop_t5.attachment.attention import point_attention
from mop_t5.attachment.encoder import evaluating
from mop_t5.attachment.method import Where
from mop_t5.backbone.build import build_backbone
from mop_t5.backbone.load import is_untied
from mop_t5.backbone.weights import is_quantised
from mop_t5.methods.fixed_prefix import FixedPrefix, FixedPrefixConfig
from mop_t5.methods.task_moe.method import TaskMoE
from mop_t5.operations.attach import scenario_ids
from mop_t5.storage import adapter_folder


class Exported(NamedTuple):
    """Sizes of the exported and of the attached method."""

    numbers: int  # in the folder: keys, values, and LayerNorms of the backbone that the method trained
    parameters: int  # that the method has in their place


def export(model: PreTrainedModel, folder: str | os.PathLike) -> Exported:
    """Write the prefixes of all scenarios that the attached method generates, for mop_t5.load to read.

    mop_t5.load attaches the folder as the method "fixed_prefix": the same keys and values, without the network that
    made them and the kernels it runs on. The attached method stays as it is.

    Raises:
        RuntimeError: No method is attached.
        ValueError: The method adds something else than prefixes.
        OSError: As mop_t5.save raises.
    """
    t5 = attached(model)
    method = t5.mop
    with evaluating(method):
        additions = method.additions()
    others = [value for value in (additions.prompt, additions.experts, additions.loss) if value is not None]
    if not additions.prefixes or additions.adapters or others:
        raise ValueError(f"{method.name!r} adds something else than prefixes to the backbone. Use mop_t5.save.")
    trained = {name: p for name, p in t5.named_parameters() if method.trains_backbone(name)}
    rows = {a: [0 if pair is None else len(pair[0]) for pair in pairs] for a, pairs in additions.prefixes.items()}
    keys, _ = next(pair for pairs in additions.prefixes.values() for pair in pairs if pair is not None)
    config = FixedPrefixConfig(method.scenarios, keys.shape[-2], rows, bool(trained))
    fixed = FixedPrefix(config, method.shape, device=keys.device, dtype=keys.dtype)
    for attention, pairs in additions.prefixes.items():
        for stored, pair in zip(fixed.prefixes[attention], pairs, strict=True):
            if pair is not None:
                stored.keys.copy_(pair[0])
                stored.values.copy_(pair[1])
    tensors = fixed.state_dict(prefix=f"{SUBMODULE}.") | trained
    adapter_folder.write(folder, t5.description_of(fixed), tensors)
    parameters = [*method.parameters(), *trained.values()]
    return Exported(sum(t.numel() for t in tensors.values()), sum(p.numel() for p in parameters))


@torch.no_grad()
def squeeze(model: PreTrainedModel, scenario: str) -> PreTrainedModel:
    """Return a frozen plain T5 of the backbone's class, size and cost, with tensors of its own. model stays as it is.

    The result is exact if the scenario routes to one expert per layer. Otherwise each layer keeps the expert with the
    largest weight. The dtype is that of the experts (float32 for a half-precision backbone).

    Raises:
        ValueError: Another method is attached, the backbone is quantised, the scenario is unknown, or experts of
            different numbers with own_tables are chosen in one stack: a plain T5 has one table of relative positions
            per stack.
    """
    t5 = unwrapped(model)
    if not is_attached(t5) or not isinstance(t5.mop, TaskMoE):
        raise ValueError("model must have the method 'task_moe' attached. Attach or load it first.")
    if any(map(is_quantised, t5.parameters())):
        raise ValueError("model must have a backbone in floating point to be squeezed; this one is quantised.")
    method = t5.mop
    chosen = method.route_weights()[:, int(scenario_ids(model, scenario))].argmax(-1).tolist()
    if method.config.own_tables and method.shape.model_type != "umt5":
        for stack in ("encoder", "decoder"):
            used = {expert for expert, (of, _) in zip(chosen, method.expert_places, strict=True) if of == stack}
            if len(used) > 1:
                raise ValueError(
                    f"the {stack} takes experts {sorted(used)} for {scenario!r}, each with a table of relative "
                    "positions of its own, and a plain T5 has one. Train with own_tables=False to squeeze."
                )
    state = {name: t for name, t in t5.state_dict().items() if not name.startswith(f"{SUBMODULE}.")}
    for (stack, layer), experts, expert in zip(method.expert_places, method.experts, chosen, strict=True):
        for name, tensor in experts[expert].state_dict().items():
            state[f"{stack}.block.{layer}.{name}"] = tensor
    where: Where = {"device": t5.shared.weight.device, "dtype": method.temperature.dtype}
    plain = build_backbone(t5.config, tie_word_embeddings=not is_untied(t5), **where)
    plain.load_state_dict(state)
    point_attention(cast(T5, plain), t5._mop_record.attention)
    plain.generation_config = copy.deepcopy(t5.generation_config)
    return plain
