"""What every method has in common: a config that checks itself, and a module that makes additions to a T5."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from mop_t5.attachment.additions import Additions
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import LARGEST_INT, check_choice, check_scenarios


@dataclass(frozen=True)
class MethodConfig:
    """Base of the configs. Every field can be written as JSON; lists become tuples.

    scenarios: names of the scenarios; the scenario at position s has id s.
    """

    scenarios: tuple[str, ...] = ()

    def __post_init__(self):
        self._set("scenarios", check_scenarios(self.scenarios))

    def _set(self, name: str, value) -> None:
        object.__setattr__(self, name, value)  # only while the frozen config is being made

    def _fill_in(self, presets: dict[str, dict], unasked: str | None = None) -> None:
        """Give the fields that the config's `preset` (where there is none, `unasked`) names its values, where they have
        their default."""
        check_choice("preset", self.preset, (None, *presets))
        for name, value in presets.get(self.preset or unasked, {}).items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                self._set(name, value)

    @classmethod
    def make(cls, given: dict) -> "MethodConfig":
        """From a dict, with an error that lists the valid fields if one is unknown."""
        valid = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(valid))
        if unknown:
            raise ValueError(f"unknown field {', '.join(unknown)} for {cls.__name__}; expected {', '.join(valid)}.")
        return cls(**given)

    def to_dict(self) -> dict:
        return asdict(self)

    def sources(self) -> dict[str, list[Path]]:
        """Return the files and folders that attach reads, by the field that names them."""
        return {}

    def with_scenarios(self, scenarios) -> "MethodConfig":
        """The same config for other scenarios."""
        return replace(self, scenarios=scenarios)


class Method(nn.Module):
    """Base of the methods. A subclass sets `name` and `Config` and overrides what it needs.

    Constructed as Method(config, shape, device=, dtype=): config an instance of Config, shape the BackboneShape.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    attachable: ClassVar[bool] = True  # False: there is nothing to start from, it is only loaded
    adapter_places: tuple[tuple[str, str], ...] = ()  # where additions() may put adapters, out of additions.PLACES
    expert_places: tuple[tuple[str, int], ...] = ()  # (stack, layer) of the blocks that run additions().experts
    has_prompt: bool = False  # whether additions() has a prompt, which is put in front of the encoder's input
    # whether a batch may leave parameters without a gradient; all others get one of zeros where they have no part
    skips_parameters: bool = False
    trained_scenarios: tuple[int, ...] | None = None  # ids of those that train alone, None for all; see train_only

    def __init__(self, config: MethodConfig, shape: BackboneShape):
        super().__init__()
        self.config = config
        self.shape = shape

    @property
    def scenarios(self) -> tuple[str, ...]:
        return self.config.scenarios

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the method's parameters, in which it computes on the backbone's hidden states."""
        return next(self.parameters()).dtype

    @property
    def distinguishes_scenarios(self) -> bool:
        """Whether scenario_ids change what the method computes."""
        return False

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        """What a batch of these scenarios needs, of all if None. scenario_ids: (batch,) int64, repetitions allowed."""
        return Additions()

    def forward(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        return self.additions(scenario_ids)

    def build(self, model, device, dtype) -> None:
        """Make the modules whose structure only the model tells, without values. Called once, after construction."""

    def initialise(self, model) -> dict[str, torch.Tensor] | None:
        """Set initial values that come from the backbone. Called once by attach, not where values are loaded.

        Returns those of parameters of the backbone that the method trains, by name, where they are not the backbone's.
        """

    def source_text(self, dialogue: str, scenario: str) -> str:
        """What the encoder is to read of a dialogue."""
        return dialogue

    def trains_backbone(self, parameter_name: str) -> bool:
        """Whether the method trains this parameter of the backbone. It is then saved with it and restored by detach."""
        return False

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Named groups of the method's parameters, for an optimizer; each parameter is in exactly one."""
        return {"method": list(self.parameters())}

    def idle_groups(self, step: int) -> tuple[str, ...]:
        """The parameter groups, "backbone" among them, that this optimizer step (from 0) leaves alone."""
        return ()

    def after_step(self, step: int) -> None:
        """Called in training when so many optimizer steps are done, and at its start, with 0 or where it is resumed."""

    def records(self) -> dict[str, dict]:
        """What training is to log of the method at each validation and at the end: {file: an object}, which becomes a
        line of this file of the run folder, with the step."""
        return {}

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        """(parameter, dimension that counts the experts) of every parameter that belongs to single experts.

        A slice whose scenario a batch lacks has gradient zero; training keeps it free of decay and momentum.
        """
        return iter(())

    def only_trained(self, rows: torch.Tensor, needed: torch.Tensor | None = None, dim: int = 0) -> torch.Tensor:
        """rows, of which a gradient reaches only those in trained_scenarios. Their dimension dim counts the scenarios:
        those in needed (see needed_scenarios), or all."""
        if self.trained_scenarios is None or not torch.is_grad_enabled():
            return rows
        here = torch.arange(rows.shape[dim], device=rows.device) if needed is None else needed
        trained = torch.isin(here, torch.tensor(self.trained_scenarios, device=rows.device))
        shape = [1] * rows.dim()
        shape[dim] = -1
        return torch.where(trained.view(shape), rows, rows.detach())

    def needed_scenarios(self, scenario_ids: torch.Tensor | None) -> torch.Tensor | None:
        """The scenarios of a batch, ascending, or None to compute all of them.

        On an accelerator the host would have to wait to learn which these are; while training that costs more than the
        work for a moderate number of scenarios.
        """
        count = len(self.scenarios)
        if scenario_ids is None or count == 1 or torch.compiler.is_compiling() or scenario_ids.is_meta:
            return None
        if scenario_ids.device.type != "cpu" and torch.is_grad_enabled() and count <= 64:
            return None
        needed = torch.unique(scenario_ids)
        return None if len(needed) == count else needed

    def check_scenario_ids(self, scenario_ids, batch: int, device, on_device: bool = False) -> torch.Tensor | None:
        """scenario_ids as an int64 tensor (batch,) on device. Takes a tensor, a list or one id for the whole batch.

        The range is checked for ids that live on the CPU; reading others back would make the host wait, so they are
        checked only if on_device.
        """
        if scenario_ids is None:
            if not self.distinguishes_scenarios:
                return None
            if len(self.scenarios) == 1:
                scenario_ids = 0
            else:
                raise ValueError(
                    f"scenario_ids is missing; {self.name} needs one id an example, 0 to {len(self.scenarios) - 1} for "
                    f"{', '.join(self.scenarios)}."
                )
        if not isinstance(scenario_ids, torch.Tensor):
            scenario_ids = _tensor_of_ids(scenario_ids)
        if scenario_ids.layout != torch.strided or (scenario_ids.is_meta and torch.device(device).type != "meta"):
            raise TypeError(
                f"scenario_ids must be a dense tensor with values; got one of layout {scenario_ids.layout} on device "
                f"'{scenario_ids.device}'."
            )
        if scenario_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"scenario_ids must be integers; got a tensor of {scenario_ids.dtype}.")
        if scenario_ids.dim() == 0:
            scenario_ids = scenario_ids.expand(batch)
        if scenario_ids.shape != (batch,):
            raise ValueError(
                f"scenario_ids must have shape ({batch},), one id an example; got {tuple(scenario_ids.shape)}."
            )
        readable = scenario_ids.device.type == "cpu" or (on_device and not scenario_ids.is_meta)
        if readable and self.scenarios and batch and not torch.compiler.is_compiling():
            low, high = (int(v) for v in scenario_ids.aminmax())
            if low < 0 or high >= len(self.scenarios):
                raise ValueError(
                    f"scenario_ids must lie in 0 to {len(self.scenarios) - 1} ({', '.join(self.scenarios)}); got "
                    f"{low if low < 0 else high}."
                )
        return scenario_ids.to(device=device, dtype=torch.int64)


def _tensor_of_ids(scenario_ids) -> torch.Tensor:
    if isinstance(scenario_ids, str) or (
        isinstance(scenario_ids, (list, tuple)) and any(isinstance(i, str) for i in scenario_ids)
    ):
        raise TypeError("scenario_ids must be ids, not names. Use mop_t5.scenario_ids(model, names).")
    valid = scenario_ids if isinstance(scenario_ids, (list, tuple)) else [scenario_ids]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in valid):
        raise TypeError(f"scenario_ids must be a tensor, a list of int or an int; got {scenario_ids!r}.")
    if any(abs(i) > LARGEST_INT for i in valid):
        raise ValueError("scenario_ids must be positions in the list of scenarios; got a number of more than 31 bits.")
    return torch.tensor(scenario_ids, dtype=torch.int64)


def is_layer_norm(parameter_name: str) -> bool:
    """Whether a parameter of the backbone is the weight of one of its LayerNorms."""
    return parameter_name.endswith("layer_norm.weight")
