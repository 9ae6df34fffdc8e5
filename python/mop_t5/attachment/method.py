"""The base of all methods: a config that checks itself, and a module that makes additions to a T5."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import Additions
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import LARGEST_INT, check_choice, check_names, check_types

Device: TypeAlias = torch.device | str | None


class Where(TypedDict, total=False):
    """Keyword arguments of torch's factories."""

    device: Device
    dtype: torch.dtype | None


ConfigT = TypeVar("ConfigT", bound="MethodConfig")


@dataclass(frozen=True)
class MethodConfig:
    """Base of the configs. Every field can be written as JSON; lists become tuples.

    scenarios: names of the scenarios; the scenario at position s has id s.
    """

    scenarios: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):
                self._set(field.name, tuple(value))
        check_names("scenarios", self.scenarios)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # only while the frozen config is being made

    def _fill_in(self, presets: Mapping[str, Mapping[str, Any]], preset: str | None, otherwise: str = "") -> None:
        """Set the fields that have their default to their values in `preset`; in `otherwise` if `preset` is None."""
        check_choice("preset", preset, (None, *presets))
        for name, value in presets.get(preset or otherwise, {}).items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                self._set(name, value)

    @classmethod
    def make(cls: type[ConfigT], given: Mapping[str, Any]) -> ConfigT:
        """Return the config with the given fields.

        Raises:
            ValueError: A field is unknown (the message lists the valid fields), or has a wrong value.
            TypeError: A field has a value of a wrong type.
        """
        valid = [f.name for f in fields(cls)]
        if unknown := sorted(set(given) - set(valid)):
            raise ValueError(f"unknown field {', '.join(unknown)} for {cls.__name__}; expected {', '.join(valid)}.")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)

    def sources(self) -> dict[str, list[Path]]:
        """Return the files and folders that attach reads, by the field that names them."""
        return {}

    def with_scenarios(self: ConfigT, scenarios: Sequence[str]) -> ConfigT:
        """Return the same config for other scenarios."""
        return replace(self, scenarios=tuple(scenarios))


class Method(nn.Module, Generic[ConfigT]):
    """Base of the methods. A subclass sets `name` and `Config` and overrides the parts that it changes.

    Args:
        config: An instance of Config.
        shape: The sizes of the backbone.
        where: Device and dtype of the parameters.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    attachable: ClassVar[bool] = True  # False: it has no initial values and can only be loaded
    config: ConfigT
    adapter_places: tuple[tuple[str, str], ...] = ()  # in PLACES and INNER_PLACES, for adapters of additions()
    expert_places: tuple[tuple[str, int], ...] = ()  # (stack, layer) of the blocks that run additions().experts
    distinguishes_scenarios: bool = False  # True if the outputs depend on scenario_ids
    has_prompt: bool = False  # True if additions() has a prompt, which is put in front of the encoder's input
    # True if a batch may leave parameters without a gradient. If False, unused parameters get a gradient of zeros
    skips_parameters: bool = False
    # parameter group -> the first parts of the names of its parameters; see parameter_groups
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    trained_scenarios: tuple[int, ...] | None = None  # ids of the scenarios that train, None for all; see train_only

    def __init__(self, config: ConfigT, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__()
        self.config = config
        self.shape = shape

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios."""
        return self.config.scenarios

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the method's parameters, in which it computes on the backbone's hidden states."""
        return next(self.parameters()).dtype

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the additions for a batch.

        Args:
            scenario_ids: (batch,) int64, repetitions allowed. None: make the additions for all scenarios.
        """
        return Additions()

    def forward(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return additions(scenario_ids)."""
        return self.additions(scenario_ids)

    def build(self, model: T5, **where: Unpack[Where]) -> None:
        """Make the modules whose structure depends on the model, without values. Called once, after construction."""

    def initialise(self, model: T5) -> dict[str, Tensor] | None:
        """Set initial values that come from the backbone. Called once by attach, but not by load.

        Returns:
            Parameter name -> initial value, for trained backbone parameters that start at other values than their own.
        """

    def source_text(self, dialogue: str, scenario: str) -> str:
        """Return the text that the encoder reads for a dialogue."""
        return dialogue

    def trains_backbone(self, parameter_name: str) -> bool:
        """Return whether the method trains this parameter of the backbone.

        Such a parameter is saved with the method and restored by detach. By default: the weights of LayerNorms, if the
        config has a field `layer_norms` that is true.
        """
        return getattr(self.config, "layer_norms", False) and parameter_name.endswith("layer_norm.weight")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return named groups of the method's parameters, for an optimizer. Each parameter is in exactly one group.

        By default: the groups in `groups` that have parameters, or one group "method".
        """
        if not self.groups:
            return {"method": list(self.parameters())}
        own = [(name.partition(".")[0], parameter) for name, parameter in self.named_parameters()]
        found = {group: [p for first, p in own if first in names] for group, names in self.groups.items()}
        return {group: parameters for group, parameters in found.items() if parameters}

    def idle_groups(self, step: int) -> tuple[str, ...]:
        """Return the parameter groups, possibly "backbone" too, that optimizer step `step` (from 0) does not update."""
        return ()

    def after_step(self, step: int) -> None:
        """Update state after `step` optimizer steps. Training also calls it when it starts or resumes."""

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records that training logs for the method at each validation and at the end.

        Returns:
            File name -> record. The record and the step become one line of this file in the run folder.
        """
        return {}

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        """Yield (parameter, dimension that counts the experts) of every parameter that belongs to single experts.

        If a batch lacks a scenario, its slice has gradient zero, and training applies neither weight decay nor momentum
        to this slice. By default: the parameters in `scenario_dimensions`. Nothing if scenarios are not distinguished.
        """
        if self.distinguishes_scenarios and next(self.parameters(), None) is not None:
            for name, dimension in self.scenario_dimensions().items():
                yield self.get_parameter(name), dimension

    def scenario_dimensions(self) -> dict[str, int]:
        """Return parameter name -> the dimension that counts the scenarios.

        These are the parameters that would be larger with one more scenario.
        """
        another = "".join(self.scenarios) + "+"  # longer than every name, so it equals none
        larger = self.config.with_scenarios([*self.scenarios, another])
        # both without memory: the method's own parameters may be sharded
        now, then = (type(self)(config, self.shape, device="meta") for config in (self.config, larger))
        dimensions = {}
        for (name, parameter), grown in zip(now.named_parameters(), then.parameters(), strict=True):
            if parameter.shape != grown.shape:
                sizes = zip(parameter.shape, grown.shape, strict=True)
                (dimensions[name],) = (dimension for dimension, (a, b) in enumerate(sizes) if a != b)
        return dimensions

    def only_trained(self, rows: Tensor, needed: Tensor | None = None, dim: int = 0) -> Tensor:
        """Return `rows` so that gradients reach only the rows of trained_scenarios.

        Args:
            rows: Tensor with one slice per scenario.
            needed: The scenarios of the slices (see needed_scenarios), or None for all.
            dim: The dimension that counts the scenarios.
        """
        if self.trained_scenarios is None or not torch.is_grad_enabled():
            return rows
        here = torch.arange(rows.shape[dim], device=rows.device) if needed is None else needed
        trained = torch.isin(here, torch.tensor(self.trained_scenarios, device=rows.device))
        return torch.where(trained.view(-1, *[1] * (rows.dim() - dim - 1)), rows, rows.detach())

    def needed_scenarios(self, scenario_ids: Tensor | None) -> Tensor | None:
        """Return the scenarios of a batch, ascending, or None to compute all of them.

        On an accelerator the host must wait for the ids. In training this wait costs more than computing up to 64
        scenarios.
        """
        count = len(self.scenarios)
        if scenario_ids is None or not self.distinguishes_scenarios or torch.compiler.is_compiling():
            return None
        if scenario_ids.is_meta or (scenario_ids.device.type != "cpu" and torch.is_grad_enabled() and count <= 64):
            return None
        needed = torch.unique(scenario_ids)
        return None if len(needed) == count else needed

    def check_scenario_ids(
        self, scenario_ids: Any, batch: int, device: torch.device | str, on_device: bool = False
    ) -> Tensor | None:
        """Return scenario_ids as an int64 tensor (batch,) on `device`; None if none are given and none are needed.

        Args:
            scenario_ids: A tensor, a list, or one id for the whole batch.
            batch: Number of examples.
            device: Device of the result.
            on_device: Check the range of ids that are not on the CPU, too. The host then waits for them.

        Raises:
            TypeError: An id is a name, or no integer.
            ValueError: The ids are missing, have a wrong shape or are out of range.
        """
        if scenario_ids is None and not self.distinguishes_scenarios:
            return None
        if scenario_ids is None and len(self.scenarios) != 1:
            raise ValueError(
                f"scenario_ids is missing; {self.name} needs one id per example, 0 to {len(self.scenarios) - 1} "
                f"for {', '.join(self.scenarios)}."
            )
        if not isinstance(scenario_ids, Tensor):
            scenario_ids = _tensor_of_ids(0 if scenario_ids is None else scenario_ids)
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
                f"scenario_ids must have shape ({batch},), one id per example; got {tuple(scenario_ids.shape)}."
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


def _tensor_of_ids(scenario_ids: Any) -> Tensor:
    ids = scenario_ids if isinstance(scenario_ids, (list, tuple)) else [scenario_ids]
    if any(isinstance(i, str) for i in ids):
        raise TypeError("scenario_ids must be ids, not names. Use mop_t5.scenario_ids(model, names).")
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise TypeError(f"scenario_ids must be a tensor, a list of int or an int; got {scenario_ids!r}.")
    if any(abs(i) > LARGEST_INT for i in ids):
        raise ValueError("scenario_ids must be positions in the list of scenarios; got a number of more than 31 bits.")
    return torch.tensor(scenario_ids, dtype=torch.int64)
