"""Plan the memory of a training step per device, without weights: model and step are on device "meta"."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from mop_t5.attachment.attached_model import SUBMODULE, attached, is_attached
from mop_t5.backbone.build import build_backbone, known_backbones
from mop_t5.backbone.quantisation import SCHEMES
from mop_t5.checks import Positive, check_types, one_of
from mop_t5.files import unreadable_in_a_sentence
from mop_t5.operations.attach import attach
from mop_t5.training.config import SHARDS
from mop_t5.training.memory_ledger import ACTIVATIONS, GRADIENTS, PREFIXES, WORKING, MemoryLedger
from mop_t5.training.planned_devices import among_devices, bytes_of
from mop_t5.training.planned_quantisation import quantised_bytes, quantised_layers, simulate_quantisation
from mop_t5.training.recomputation import recomputed_blocks
from mop_t5.training.zero import unfit_for_zero

_SIZES = {"GB": 10**9, "GiB": 2**30}
# share of a device for the CUDA context, the workspaces of its libraries, and fragmentation (assumed, not measured)
RESERVE = 0.08


@dataclass(frozen=True)
class PlannedStep:
    """The step whose memory is planned.

    Args:
        batch: rows per batch and device.
        source: tokens per dialogue, padding included.
        target: tokens per summary, padding included.
        accumulation: batches per step and device.
        num_scenarios: scenarios that the method tells apart.
        dtype: data type of the backbone's weights, "float32" or "bfloat16".
        quantise: "8bit" or "4bit" of bitsandbytes, "int8" or "int4" of torchao: the quantised weights of the backbone.
            "no": none.
        shard: "fsdp": the devices share the weights of the backbone. "zero2", "zero3": they share gradients and
            optimizer, or weights too, by DeepSpeed. "no": every device has all of them.
        gradient_checkpointing: keep only the inputs of each block for backward.
    """

    batch: Positive = 16
    source: Positive = 512
    target: Positive = 128
    accumulation: Positive = 1
    num_scenarios: Positive = 5
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    quantise: Annotated[str, one_of(*SCHEMES)] = "no"
    shard: Annotated[str, one_of(*SHARDS)] = "no"
    gradient_checkpointing: bool = False

    def __post_init__(self):
        check_types(self)
        if self.shard != "no" and self.quantise != "no":
            raise ValueError(
                f"quantise must be 'no' where shard is {self.shard!r}, because only weights in floating point can be "
                f"sharded; got {self.quantise!r}. Set one of them to 'no'."
            )


@dataclass(frozen=True)
class Devices:
    """Equal devices.

    Attributes:
        count: The number of devices.
        size: Bytes of each.
    """

    count: int
    size: int

    @classmethod
    def read(cls, text: str) -> "Devices":
        """Return the devices that a text such as "2x80GB" names. Raise ValueError for another text."""
        found = re.fullmatch(r"([1-9][0-9]{0,5})x([0-9]{1,9}(?:\.[0-9]{1,9})?)(GB|GiB)", text)
        size = 0 if found is None else round(float(found[2]) * _SIZES[found[3]])
        if found is None or size == 0:
            raise ValueError(
                f"devices must be a number and a size, such as 2x80GB or 8x24GiB (GB is 10^9 bytes, GiB is 2^30); got "
                f"{text!r}."
            )
        return cls(int(found[1]), size)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device.

    Attributes:
        devices: The devices.
        parts: part -> bytes, at the moment of a step that takes the most.
    """

    devices: Devices
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())

    @property
    def available(self) -> int:
        """The bytes of a device without the reserve."""
        return round((1 - RESERVE) * self.devices.size)

    @property
    def fits(self) -> bool:
        """Whether the step fits into the available bytes."""
        return self.total <= self.available


def plan_memory(
    backbone: str | PretrainedConfig,
    method: str | None,
    step: PlannedStep,
    devices: Devices,
    options: Mapping[str, Any] | None = None,
) -> MemoryPlan:
    """Return the memory that a training step with AdamW takes on each device.

    The step runs once on device "meta", and the storages that live are counted (see MemoryLedger). All rows are as long
    as `step` says. Not counted: a validation, compiled code, and the reserve.

    Args:
        backbone: A name from `known_backbones`, a folder with config.json, a name on the model hub, or a config.
        method: The name of the method. None trains all weights.
        step: The step.
        devices: The devices.
        options: Fields of the method.

    Raises:
        ValueError: A value is wrong, the checkpoint is quantised, the method trains weights that are quantised,
            DeepSpeed cannot train it, or `shard` is set for a single device.
        OSError: The folder or the name is unknown.
    """
    if method is None and options:
        raise ValueError("options are fields of a method. Name one with --method, or leave them out.")
    if step.shard != "no" and devices.count == 1:
        raise ValueError(f"shard {step.shard!r} needs two devices or more; got 1. Set shard to 'no'.")
    model = _model_on_meta(backbone, method, step, options or {})
    if step.shard.startswith("zero") and (unfit := unfit_for_zero(model)):
        raise ValueError(f"shard must be 'fsdp' or 'no' for {method}; got {step.shard!r}. DeepSpeed cannot {unfit}.")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    of_backbone = [tensor for name, tensor in _tensors(model).items() if not name.startswith(f"{SUBMODULE}.")]
    of_method = [tensor for name, tensor in _tensors(model).items() if name.startswith(f"{SUBMODULE}.")]
    weights = bytes_of(of_backbone)
    if step.quantise != "no":
        layers = quantised_layers(model, step.quantise)
        if any(parameter.requires_grad for parameter in of_backbone):
            raise ValueError(
                f"quantise must be 'no' for a training of the backbone's own weights; got {step.quantise!r}. Name a "
                "method that leaves them frozen, such as mop."
            )
        weights += sum(quantised_bytes(layer.weight, step.quantise) - layer.weight.nbytes for layer in layers)
        simulate_quantisation(model, step.quantise)
    peak = _peak_of_a_step(model, trained, step)
    parts = {"weights": weights, "method": bytes_of(of_method), GRADIENTS: peak[GRADIENTS]}
    parts |= {"optimizer": _optimizer_bytes(trained)}
    parts |= {kind: peak[kind] for kind in (ACTIVATIONS, PREFIXES, WORKING)}
    if devices.count > 1:
        parts = among_devices(parts, model, step.shard, devices.count)
    return MemoryPlan(devices, parts)


def _model_on_meta(
    backbone: str | PretrainedConfig, method: str | None, step: PlannedStep, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Return the model in training mode, as a training would make it."""
    if isinstance(backbone, str) and backbone not in known_backbones():
        if "/" not in backbone and not os.path.isdir(backbone):
            near = difflib.get_close_matches(backbone, known_backbones(), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known names: {', '.join(known_backbones())}."
            raise ValueError(f"backbone {backbone!r} is no folder and no known name. {hint}")
        place = backbone
        with unreadable_in_a_sentence("the backbone", place):
            backbone = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if getattr(backbone, "quantization_config", None) is not None:
        raise ValueError(
            "backbone must be a checkpoint in floating point; its config.json says that its weights are quantised "
            "already. Give the checkpoint that was quantised, or the name of its size, and set quantise (--quantise)."
        )
    model = build_backbone(backbone, device="meta", dtype=step.dtype)
    if method is None:
        return model.requires_grad_(True).train()
    names = [f"scenario {number}" for number in range(1, step.num_scenarios + 1)]
    return attach(model, method, **{"scenarios": names, **options}).train()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name. A tied weight stands once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _peak_of_a_step(model: PreTrainedModel, trained: list[nn.Parameter], step: PlannedStep) -> dict[str, int]:
    """Return the bytes of each kind at the moment with the most bytes, without weights, optimizer and batch."""
    rows = step.batch
    batch = {
        "input_ids": torch.zeros(rows, step.source, dtype=torch.int64, device="meta"),
        "attention_mask": torch.ones(rows, step.source, dtype=torch.int64, device="meta"),
        "labels": torch.zeros(rows, step.target, dtype=torch.int64, device="meta"),
    }
    ledger = MemoryLedger([*_tensors(model).values(), *batch.values()])
    options: dict[str, Any] = {}
    if is_attached(model):
        options = {"scenario_ids": torch.zeros(rows, dtype=torch.int64, device="meta"), "skip_logits": True}
        attached(model).mop.register_forward_pre_hook(lambda *_: ledger.make(PREFIXES))
        attached(model).mop.register_forward_hook(lambda *_: ledger.make(WORKING))
    for parameter in trained:
        ledger.watch_gradient(parameter)
    with recomputed_blocks(model, step.gradient_checkpointing), ledger:
        for _ in range(min(step.accumulation, 2)):  # the second batch finds gradients
            with ledger.saving_activations():
                loss = model(**batch, **options).loss
            loss.backward()
            del loss
    return ledger.peak


def _optimizer_bytes(trained: list[nn.Parameter]) -> int:
    """Return the bytes of AdamW's state. One step on meta makes it."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(trained, foreach=False)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    optimizer.zero_grad()
    return bytes_of(state)
