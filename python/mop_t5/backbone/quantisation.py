"""Quantised backbones: the schemes that have a name, and checks of layers that are quantised.

A quantised backbone is frozen. A method trains on it if every layer passes gradients to its input.
"""

import itertools
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from mop_t5.backbone.weights import device_of, offloads
from mop_t5.checks import check_choice

SCHEMES = {"no": None, "8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao", "int4": "torchao"}
_INT4_GROUP = 32  # weights that share a scale
_CAST = "MatMul8bitLt: inputs will be cast"
_casts = itertools.count()  # the messages of casts so far


def quantisation_config(scheme: str, dtype: torch.dtype | None = None) -> QuantizationConfigMixin | None:
    """Return the settings of transformers for a scheme, a key of SCHEMES. None for "no".

    Args:
        scheme: "8bit" and "4bit" (nf4) of bitsandbytes, or "int8" and "int4" of torchao, which quantise weights only.
        dtype: Data type in which 4-bit layers compute. None for float32.

    Raises:
        ValueError: `scheme` is unknown.
        ImportError: The package of the scheme is missing.
    """
    check_choice("quantise", scheme, SCHEMES)
    package = SCHEMES[scheme]
    if package is None:
        return None
    if find_spec(package) is None:
        raise ImportError(f"quantise={scheme!r} needs {package}: pip install 'mop-kernels[quantised]'")
    if scheme == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if scheme == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    if scheme == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    # runs on every device and keeps a byte per weight; torchao's packed schemes of 4 bits need a GPU
    int4 = torch.int4  # type: ignore[attr-defined]  # missing in the stubs of torch
    return TorchAoConfig(IntxWeightOnlyConfig(int4, PerGroup(_INT4_GROUP)))


def check_layers(model: PreTrainedModel) -> None:
    """Check that every quantised layer passes gradients to its input, and call `prepare_layers`.

    One layer of each kind is run on a row of ones.

    Raises:
        ValueError: A layer passes no gradient, or evaluation has changed its weights.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            raise ValueError(
                f"layer {name} of the backbone is a {type(module).__name__} of torch.ao.quantization, which passes no "
                "gradients. Attach to the model in floating point, and quantise the whole after training."
            )
    prepare_layers(model)
    if offloads(model):
        return
    kinds = set()
    for name, module, weight in _quantised_linears(model):
        metadata = repr(weight.__tensor_flatten__()[1]) if hasattr(weight, "__tensor_flatten__") else ""
        kind = (type(module), type(weight), metadata)
        if kind not in kinds and not _passes_gradients(module, model.dtype):
            raise ValueError(
                f"layer {name} of the backbone, a {type(module).__name__} with a weight of class "
                f"{type(weight).__name__}, passes no gradient to its input, so a method would train without it. "
                "Schemes that quantise activations do this. Load the backbone with a weight-only scheme, such as "
                "quantise='int8'."
            )
        kinds.add(kind)


def _quantised_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not (isinstance(module, nn.Linear) and isinstance(weight, Tensor)):
            continue
        plain = type(module) is nn.Linear and type(weight).__module__.partition(".")[0] == "torch"
        if not (plain or weight.is_meta):
            yield name, module, weight


def _passes_gradients(layer: Any, dtype: torch.dtype) -> bool:
    dtype = dtype if dtype.is_floating_point else torch.float32
    row = torch.ones(1, layer.in_features, device=device_of(layer), dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        out = layer(row)
    return out.requires_grad and torch.autograd.grad(out.sum(), row, allow_unused=True)[0] is not None


def prepare_layers(model: nn.Module) -> None:
    """Keep the 4-bit layers of bitsandbytes as they are loaded, and print a message of its 8-bit layers once only.

    On a CPU with AVX512-BF16 the first evaluation would repack a 4-bit weight in place. Repacked weights pass no
    gradients, their scales are rounded, and state_dict() brings the scales back in a wrong order (bitsandbytes 0.50).

    Raises:
        ValueError: A weight was repacked.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"the 4-bit weight of layer {name} was repacked by an evaluation on the CPU, and has lost its scales. "
                "Load the backbone again by mop_t5.load_backbone, or attach before the first evaluation."
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if getattr(model, "is_loaded_in_8bit", False):
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_once)


def _once(record: logging.LogRecord) -> bool:
    """Drop the message of a cast from its second time on. bitsandbytes prints it for every product of matrices."""
    return not str(record.msg).startswith(_CAST) or next(_casts) == 0
