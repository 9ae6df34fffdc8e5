"""Which backbone an adapter belongs to: a name to tell people, the shape, and a hash of the weights."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from mop_t5.backbone import BackboneShape

_SAMPLE = 4096  # values of a parameter that enter the hash


def describe_backbone(model: PreTrainedModel, parameters: Mapping[str, torch.Tensor]) -> dict:
    """What an adapter folder says of the backbone; parameters: the backbone's by name, with its own values."""
    name = model.config._name_or_path or None
    if name is not None and os.path.exists(name):
        name = os.path.basename(os.path.abspath(name))  # where it lay on this machine is nobody's business
    return {"name": name, "shape": asdict(BackboneShape.of(model)), "sha256": hash_weights(parameters)}


def check_same_backbone(model: PreTrainedModel, saved: dict, parameters: Mapping[str, torch.Tensor], folder) -> None:
    """Raise ValueError unless the backbone has the shape and the weights that describe_backbone saved."""
    differences = BackboneShape.of(model).differences(saved["shape"])
    if not differences and hash_weights(parameters) != saved["sha256"]:
        differences = ["the same shape with other weights"]
    if differences:
        trained_on = f"another backbone than this one, {saved['name']!r}" if saved["name"] else "another backbone"
        raise ValueError(f"{str(folder)!r} was trained on {trained_on} ({'; '.join(differences)}). Load that one.")


def hash_weights(parameters: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the name, the shape and up to 4096 values, evenly spread, of every parameter.

    Any other checkpoint differs in many of these values, and reading them costs milliseconds whatever the size of the
    model; a change to a few rows of a large matrix alone may not be seen. Values are rounded to bfloat16 before, so a
    backbone has one hash in float32, float64 and bfloat16, on every device. (Not in float16: rounding twice is not
    rounding once.) Raises ValueError on device "meta", where there are no values.
    """
    if any(values.is_meta for values in parameters.values()):
        raise ValueError("model lies on device 'meta' and has no values to save or to compare. Load its weights first.")
    digest = hashlib.sha256()
    for name in sorted(parameters):
        values = parameters[name].detach()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        # an odd step visits all columns of a matrix; an even one could stay in a single column
        step = math.ceil(values.numel() / _SAMPLE) | 1
        sample = values.reshape(-1)[::step].to(torch.bfloat16).cpu()
        digest.update(sample.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
