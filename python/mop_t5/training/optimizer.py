"""The optimizer of a method: parameter groups, and experts that a step leaves unchanged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import attached


def trained_groups(model: PreTrainedModel) -> dict[str, list[torch.nn.Parameter]]:
    """Return the parameter groups of an attached method, and as "backbone" the trained parameters of the backbone."""
    method = attached(model).mop
    own = {id(parameter) for parameter in method.parameters()}
    backbone = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    return method.parameter_groups() | ({"backbone": backbone} if backbone else {})


def group_parameters(
    groups: Mapping[str, Sequence[torch.nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    rates: Mapping[str, float],
    decays: Callable[[torch.nn.Parameter], bool],
) -> list[dict[str, Any]]:
    """Return parameter groups for a torch optimizer.

    A group is split if `decays` differs among its parameters. The second part has no weight decay.

    Args:
        groups: name -> parameters.
        learning_rate: The learning rate of a group without a factor.
        weight_decay: The weight decay of the first part of each group.
        rates: name -> factor on the learning rate.
        decays: Function that returns whether a parameter has weight decay.

    Raises:
        ValueError: `rates` has a name that is no group.
    """
    if unknown := sorted(set(rates) - set(groups)):
        raise ValueError(f"group_rates names no such group: {', '.join(unknown)}. Groups: {', '.join(groups)}.")
    made = []
    for name, parameters in groups.items():
        rate = learning_rate * rates.get(name, 1.0)
        for decay, strength in ((True, weight_decay), (False, 0.0)):
            if chosen := [p for p in parameters if p.requires_grad and decays(p) == decay]:
                made.append({"params": chosen, "lr": rate, "weight_decay": strength, "name": name})
    return made


def hold_absent_experts(
    optimizer: torch.optim.Optimizer, expert_parameters: Iterable[tuple[torch.nn.Parameter, int]]
) -> None:
    """Make every optimizer step leave unchanged the experts whose gradient is exactly zero.

    Otherwise weight decay and momentum would change experts that the batch did not use, and most those of rare
    scenarios. Before a step, the slices of these experts are copied from the parameter and from every state tensor with
    the same experts. After the step the slices are restored, so this works with any optimizer. State that the optimizer
    makes during the step starts at zero in these slices. State that several experts share continues to count: the step
    counter of Adam, and the column means of Adafactor for a parameter of one vector per expert.

    Args:
        optimizer: The optimizer.
        expert_parameters: Pairs of a parameter and its dimension that counts the experts.
    """
    watched = list(expert_parameters)
    held: list[tuple[torch.Tensor, int, torch.Tensor, dict[str, torch.Tensor]]] = []

    def before(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        held.clear()
        for parameter, dim in watched:
            if parameter.grad is None:  # the optimizer skips the whole parameter
                continue
            others = [d for d in range(parameter.dim()) if d != dim]
            absent = torch.where(parameter.grad.abs().amax(dim=others) == 0)[0]
            if len(absent):
                state = {key: t.index_select(dim, absent) for key, t in _slices(optimizer, parameter, dim).items()}
                held.append((parameter, dim, absent, {"": parameter.detach().index_select(dim, absent), **state}))

    def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        with torch.no_grad():
            for parameter, dim, absent, saved in held:
                parameter.index_copy_(dim, absent, saved.pop(""))
                for key, tensor in _slices(optimizer, parameter, dim).items():
                    if key in saved:
                        tensor.index_copy_(dim, absent, saved[key])
                    else:
                        tensor.index_fill_(dim, absent, 0)
        held.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _slices(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, dim: int) -> dict[str, torch.Tensor]:
    """Return the state tensors of a parameter that share its dimensions up to the dimension of the experts."""
    leading = parameter.shape[: dim + 1]
    state = {key: t for key, t in optimizer.state.get(parameter, {}).items() if torch.is_tensor(t)}
    if dim == parameter.dim() - 2:  # Adafactor's means over the experts may have as many columns as there are experts
        state.pop("exp_avg_sq_col", None)
    return {key: t for key, t in state.items() if t.dim() > dim and t.shape[: dim + 1] == leading}
