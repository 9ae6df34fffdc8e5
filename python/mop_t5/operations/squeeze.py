"""A plain T5 out of a task-level mixture of experts: for one task, in every layer the expert of the largest weight."""

import copy

import torch
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import SUBMODULE, is_attached, unwrapped
from mop_t5.attachment.attention import point_attention
from mop_t5.backbone.build import build_backbone
from mop_t5.backbone.load import is_untied
from mop_t5.methods.task_moe.method import TaskMoE
from mop_t5.operations.attach import scenario_ids


@torch.no_grad()
def squeeze(model: PreTrainedModel, scenario: str) -> PreTrainedModel:
    """A frozen plain T5 of the backbone's class, size and cost, with tensors of its own; model stays as it is.

    Where the route of the scenario is one expert a layer ("straight_through", "random_1") it computes what model does
    for it; else only the largest part. It has the experts' precision: float32, whatever the backbone's below that.

    Raises ValueError for another method, for an unknown scenario, and where experts of different numbers with
    own_tables are chosen in one stack, because a plain T5 has one table of relative positions a stack.
    """
    model = unwrapped(model)
    if not is_attached(model) or not isinstance(model.mop, TaskMoE):
        raise ValueError("model must have the method 'task_moe' attached. Attach or load it first.")
    method = model.mop
    chosen = method.route_weights()[:, scenario_ids(model, scenario).item()].argmax(-1).tolist()
    if method.config.own_tables and method.shape.model_type != "umt5":
        for stack in ("encoder", "decoder"):
            used = {expert for expert, (of, _) in zip(chosen, method.expert_places, strict=True) if of == stack}
            if len(used) > 1:
                raise ValueError(
                    f"the {stack} takes experts {sorted(used)} for {scenario!r}, each with a table of relative "
                    "positions of its own, and a plain T5 has one. Train with own_tables=False to squeeze."
                )
    state = {name: t for name, t in model.state_dict().items() if not name.startswith(f"{SUBMODULE}.")}
    for (stack, layer), experts, expert in zip(method.expert_places, method.experts, chosen, strict=True):
        for name, tensor in experts[expert].state_dict().items():
            state[f"{stack}.block.{layer}.{name}"] = tensor
    where = {"device": model.shared.weight.device, "dtype": method.temperature.dtype}
    plain = build_backbone(model.config, tie_word_embeddings=not is_untied(model), **where)
    plain.load_state_dict(state)
    point_attention(plain, model._mop_record.attention)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain
