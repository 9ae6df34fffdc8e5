"""The optimizer of a method: its parameter groups, and experts that a step does not touch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch


def group_parameters(
    groups: Mapping[str, Sequence[torch.nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    rates: Mapping[str, float],
    decays: Callable[[torch.nn.Parameter], bool],
) -> list[dict]:
    """Parameter groups for a torch optimizer, with rate `learning_rate * rates.get(name, 1)`.

    A group is split in two where `decays` differs among its parameters; the second part has no weight decay. Raises
    ValueError for a name in `rates` that is no group.
    """
    unknown = sorted(set(rates) - set(groups))
    if unknown:
        raise ValueError(f"group_rates names no such group: {', '.join(unknown)}. Groups: {', '.join(groups)}.")
    made = []
    for name, parameters in groups.items():
        for decay in (True, False):
            chosen = [p for p in parameters if p.requires_grad and decays(p) == decay]
            if chosen:
                rate = learning_rate * rates.get(name, 1.0)
                decay_rate = weight_decay if decay else 0.0
                made.append({"params": chosen, "lr": rate, "weight_decay": decay_rate, "name": name})
    return made


def hold_absent_experts(
    optimizer: torch.optim.Optimizer, expert_parameters: Iterable[tuple[torch.nn.Parameter, int]]
) -> None:
    """Let an optimizer step leave alone every expert whose gradient is exactly zero.

    expert_parameters: pairs of a parameter and the dimension of it that counts the experts. Weight decay and momentum
    would otherwise move experts that the batch did not use, the more the rarer their scenario. Before a step the slices
    of such experts, in the parameter and in every state tensor that has the same experts, are copied; after it they are
    put back, so this works for any optimizer. State that the optimizer makes during this very step starts at zero in
    these slices. Adam's step counter is one for a whole parameter and goes on counting.
    """
    watched = list(expert_parameters)
    held: list[tuple[torch.Tensor, int, torch.Tensor, dict[str, torch.Tensor]]] = []

    def before(optimizer, args, kwargs) -> None:
        held.clear()
        for parameter, dim in watched:
            if parameter.grad is None:  # the optimizer skips the whole parameter
                continue
            others = [d for d in range(parameter.dim()) if d != dim]
            absent = torch.where(parameter.grad.abs().amax(dim=others) == 0)[0]
            if len(absent):
                state = {key: t.index_select(dim, absent) for key, t in _slices(optimizer, parameter, dim).items()}
                held.append((parameter, dim, absent, {"": parameter.detach().index_select(dim, absent), **state}))

    def after(optimizer, args, kwargs) -> None:
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
    """The state tensors of a parameter that have its dimensions up to and with that of the experts."""
    leading = parameter.shape[: dim + 1]
    state = optimizer.state.get(parameter, {})
    return {
        key: t for key, t in state.items() if torch.is_tensor(t) and t.dim() > dim and t.shape[: dim + 1] == leading
    }
