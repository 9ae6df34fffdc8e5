"""The scenarios of a trained method: list all, add or remove a scenario, train some scenarios alone."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import SUBMODULE, AttachedT5, attached, changeable
from mop_t5.attachment.method import Method
from mop_t5.checks import check_names
from mop_t5.operations.attach import build_method


def scenarios(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the scenarios of the attached method; the scenario at position s has id s.

    Raises:
        RuntimeError: No method is attached.
    """
    return attached(model).scenarios


def add_scenario(model: PreTrainedModel, name: str, like: str | None = None) -> None:
    """Add a scenario to an attached method, as the last id, and train it alone (train_only), for few-shot tuning.

    The other scenarios' outputs stay as they are, bit for bit. The parameters that grow are new objects: make the
    optimizer afterwards.

    Args:
        model: The attached T5 itself.
        name: The new scenario.
        like: The scenario whose expert is the start of the new expert. None: the mean of all experts, parameter by
            parameter.

    Raises:
        ValueError: `name` is known already, `like` is unknown, or the method's scenarios share all parameters
            (prefix_tuning, MOP with num_experts=1), so that there is nothing to add.
    """
    t5 = changeable(model)
    method = t5.mop
    known = method.scenarios
    _check_name("name", name)
    if name in known:
        raise ValueError(f"name {name!r} is a scenario of the model already; known are {', '.join(known)}.")
    everyone = list(range(len(known)))
    start = everyone if like is None else [_id(method, "like", like)]
    t5.mop = _with_scenarios(t5, [*known, name], [*([scenario] for scenario in everyone), start])
    train_only(model, [name])


def remove_scenario(model: PreTrainedModel, name: str) -> None:
    """Remove a scenario and its expert from an attached method. Ids above its own become one smaller.

    The other scenarios' outputs stay as they are, bit for bit, and train_only keeps its effect. The parameters that
    shrink are new objects: make the optimizer afterwards.

    Raises:
        ValueError: `name` is unknown or the last scenario, or the method's scenarios share all parameters.
    """
    t5 = changeable(model)
    method = t5.mop
    gone = _id(method, "name", name)
    if len(method.scenarios) == 1:
        raise ValueError(f"name {name!r} is the last scenario of the method. Detach the method instead.")
    kept = [scenario for scenario in range(len(method.scenarios)) if scenario != gone]
    new = _with_scenarios(t5, [method.scenarios[s] for s in kept], [[s] for s in kept])
    if method.trained_scenarios is not None:
        new.trained_scenarios = tuple(kept.index(s) for s in method.trained_scenarios if s != gone)
    t5.mop = new


def train_only(model: PreTrainedModel, names: list[str] | None) -> None:
    """Train the experts of these scenarios alone; None trains all of the method again.

    Parameters that scenarios share require no gradient (MOP: LoRE, X', layer biases, MLP generators). The gradients of
    other scenarios' experts are exactly zero, in mixed batches too. The experts of all scenarios lie in one tensor, so
    an optimizer with weight decay or old momentum would still move the others. mop_t5.training.train holds them; in a
    loop of your own call hold_absent_experts(optimizer, model.mop.expert_parameters()). Not saved with the method.

    Raises:
        ValueError: There is no name or an unknown name, or the method's scenarios share all parameters.
    """
    t5 = changeable(model)
    method = t5.mop
    ids: tuple[int, ...] | None = None
    if names is None:
        trained = {f"{SUBMODULE}.{n}" for n, _ in method.named_parameters()} | t5._mop_record.trained.keys()
    else:
        trained = {f"{SUBMODULE}.{n}" for n in _scenario_dimensions(method)}
        ids = tuple(_id(method, "names", name) for name in check_names("names", names))
        if not ids:
            raise ValueError("names must hold at least one scenario; got none. Use None to train all of the method.")
    for parameter_name, parameter in t5.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
        if not parameter.requires_grad:
            parameter.grad = None
    method.trained_scenarios = ids


def _check_name(argument: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be the name of a scenario; got {name!r}.")
    check_names(argument, [name])


def _id(method: Method, argument: str, name: str) -> int:
    _check_name(argument, name)
    if name not in method.scenarios:
        known = ", ".join(method.scenarios) or "none: the method has none"
        raise ValueError(f"{argument} {name!r} is no scenario of the model; expected one of {known}.")
    return method.scenarios.index(name)


def _scenario_dimensions(method: Method) -> dict[str, int]:
    """Return method.scenario_dimensions(), or raise ValueError if no parameter counts scenarios."""
    dimensions = method.scenario_dimensions()
    if not dimensions:
        raise ValueError(
            f"the scenarios of this {method.name!r} share all its parameters, so none can be added, removed or trained "
            "alone. Train or attach it for the scenarios that you want."
        )
    return dimensions


def _with_scenarios(model: AttachedT5, names: Sequence[str], sources: list[list[int]]) -> Method:
    """Return the attached method for `names`. Scenario s starts as the mean of the old scenarios sources[s].

    Parameters that scenarios share are the same objects in both.
    """
    method = model.mop
    dimensions = _scenario_dimensions(method)
    asks = {name: parameter.requires_grad for name, parameter in method.named_parameters()}
    state = method.state_dict(keep_vars=True)
    for name, dim in dimensions.items():
        old = state[name].detach()
        parts = (old.index_select(dim, torch.tensor(ids, device=old.device)) for ids in sources)
        # the mean of a single part could turn -0.0 into 0.0
        state[name] = torch.cat([part if part.shape[dim] == 1 else part.mean(dim, True) for part in parts], dim)
    new = build_method(type(method), method.config.with_scenarios(names), model, device="meta")
    new.load_state_dict(state, assign=True)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(asks[name])
    return new.train(method.training)
