"""Load a frozen T5, mT5 or umT5, check it, and describe its shape."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from mop_t5.backbone.checkpoint import HEAD, SHARED, check_described_size, check_loaded, check_shapes, stored_tensors
from mop_t5.backbone.placement import DeviceMap, check_modules, check_placement, check_ties, with_devices
from mop_t5.backbone.quantisation import check_layers, prepare_layers
from mop_t5.backbone.source import Source, check_folder
from mop_t5.backbone.weights import shape_of
from mop_t5.files import StrPath, unreadable_in_a_sentence

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "t5": transformers.T5ForConditionalGeneration,
    "mt5": transformers.MT5ForConditionalGeneration,
    "umt5": transformers.UMT5ForConditionalGeneration,
}


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone. Methods are built from them, and an adapter folder stores them.

    Attributes:
        is_gated_act: True if feed-forward networks have two input maps, wi_0 and wi_1.
    """

    model_type: str
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    vocab_size: int
    is_gated_act: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> "BackboneShape":
        """Return the shape of a backbone."""
        return cls(**{name: getattr(model.config, name) for name in cls.__dataclass_fields__})

    @property
    def inner(self) -> int:
        """Width of one key or value row of all heads. It may differ from d_model (mT5-small, T5-3B)."""
        return self.num_heads * self.d_kv

    def layers(self, part: str) -> int:
        """Return the number of layers of a stack ("encoder", "decoder") or of an attention ("encoder_self", ...)."""
        return self.num_layers if part.startswith("encoder") else self.num_decoder_layers

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return the differences to a saved shape (a mapping of the same fields) as `field: saved x, here y`."""
        mine = asdict(self)
        # older folders lack is_gated_act, but the hash of the weights tells gated and other networks apart
        other = {"is_gated_act": self.is_gated_act, **other}
        return [f"{key}: saved {other.get(key)}, here {mine[key]}" for key in mine if other.get(key) != mine[key]]


def check_backbone(model: object) -> None:
    """Check that `model` is a T5, mT5 or umT5 with encoder, decoder and language-model head.

    Warn of an untied umT5 whose decoder output transformers scales as if it were tied.

    Raises:
        TypeError: `model` is something else.
        ValueError: No gradient passes a quantised layer of the model, or its weights have changed.
    """
    classes = tuple(MODEL_CLASSES.values())
    if not isinstance(model, classes):
        expected = ", ".join(c.__name__ for c in classes)
        raise TypeError(
            f"model must be one of {expected}; got {type(model).__name__}. Use mop_t5.load_backbone or "
            "mop_t5.build_backbone, or pass the unwrapped transformers model."
        )
    scales = getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings)
    if model.config.model_type == "umt5" and is_untied(model) and scales:
        warnings.warn(
            f"this umT5 has a head of its own, but transformers {transformers.__version__} scales the head's input by "
            "d_model^-0.5, as for a tied head. Its losses differ from those of a backbone that mop_t5.load_backbone or "
            "transformers 5.24 has loaded.",
            stacklevel=3,
        )
    check_layers(model)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Turn off gradients and dropout of a model. Return the same model."""
    return model.requires_grad_(False).eval()


def is_untied(model: PreTrainedModel) -> bool:
    """Return whether the output head has its own weights."""
    return model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def mark_untied(model: PreTrainedModel) -> None:
    """Tell transformers that the output head has its own weights.

    transformers 5 sets tie_word_embeddings=True in every config of a T5. With it, a later tie_weights() would overwrite
    the head without a message (Trainer calls it after loading a checkpoint), and umT5 would scale its decoder output.
    """
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys.pop(HEAD, None)


@contextmanager
def _without_warnings_of_loading() -> Iterator[None]:
    """Hide two messages of transformers.

    The first message asks to set tie_word_embeddings=False in the config, which no T5 config keeps (see `mark_untied`).
    The second message is the report about weights that do not fit. `check_loaded` raises an error for them. The report
    stays visible if an error of a quantiser refers to it.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "tied weights mapping" not in message and ("LOAD REPORT" not in message or "CONVERSION" in message)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the floating data type that `dtype` is or names. None stays None.

    Raises:
        TypeError: `dtype` is something else.
    """
    named = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if named is not None and not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise TypeError(f"dtype must be a floating torch.dtype or its name, such as torch.bfloat16; got {named!r}.")
    return named


def load_backbone(
    path_or_hub_name: StrPath,
    *,
    dtype: torch.dtype | str | None = None,
    quantization_config: QuantizationConfigMixin | dict[str, Any] | None = None,
    device_map: DeviceMap = None,
    max_memory: Mapping[Any, int | str] | None = None,
    offload_folder: StrPath | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
) -> PreTrainedModel:
    """Return a frozen T5, mT5 or umT5 in evaluation mode.

    An untied head (mT5, T5 1.1, T5-pegasus) stays untied, and a tied head stays tied.

    Args:
        path_or_hub_name: Folder that save_pretrained wrote, or name on the model hub.
        dtype: Data type of the weights. None for the data type of the checkpoint.
        quantization_config: Quantise the weights while they are loaded, for example by
            transformers.BitsAndBytesConfig(load_in_8bit=True) or a TorchAoConfig. A checkpoint that is quantised needs
            none.
        device_map: Devices of the layers: "auto" fills the GPUs, then the memory of the host, then the disk. A device
            such as "cuda:1" takes the whole model. A dict has one device, "cpu" or "disk" per module. None for the CPU.
        max_memory: Device -> largest memory to use with "auto", such as {0: "20GiB", "cpu": "60GiB"}.
        offload_folder: Folder for the weights that device_map puts on the disk, unless the checkpoint has them in
            safetensors.
        attn_implementation: "sdpa" or "eager". None for the choice of transformers.
        revision: Branch, tag or commit on the model hub. None for the main branch.
        subfolder: Folder of the files within the folder or repository.
        token: Access token of the model hub. None for the token that is saved on this machine.
        cache_dir: Folder of downloaded files. None for the cache of the hub.

    Raises:
        OSError: There is no such folder or hub name, or a file is missing.
        ImportError: The checkpoint is quantised, or quantization_config is given, and the package is missing.
        TypeError: An argument has a wrong type, or `dtype` is no floating type.
        ValueError: The folder holds something else, or a weight is missing, unknown, of another shape than in
            config.json, not floating point or not finite; or an argument has a wrong value.
    """
    dtype = as_dtype(dtype)
    source = Source(path_or_hub_name, revision, subfolder, token, cache_dir)
    check_placement(device_map, max_memory, offload_folder)
    if not isinstance(quantization_config, QuantizationConfigMixin | dict | None):
        raise TypeError(
            "quantization_config must be a config of transformers, such as BitsAndBytesConfig(load_in_8bit=True); got "
            f"{quantization_config!r}."
        )
    check_folder(source)
    place = str(source)
    with unreadable_in_a_sentence("the backbone", place):
        written = source.find_json("config.json")
        source.find_json("generation_config.json")  # transformers would replace a damaged file by its defaults
        # without the argument, transformers would ask on the terminal whether code in the folder may run
        config = AutoConfig.from_pretrained(source.place, trust_remote_code=False, **source.arguments)
    model_class = MODEL_CLASSES.get(config.model_type)
    if model_class is None:
        raise ValueError(
            f"path_or_hub_name {place!r} holds a {config.model_type!r} model; expected {', '.join(MODEL_CLASSES)}."
        )
    with unreadable_in_a_sentence("the backbone", place):
        stored = stored_tensors(source)
        check_described_size(stored, config)
        if "/" in str(config._attn_implementation):
            raise ValueError(
                f"config.json names the attention {config._attn_implementation!r}, which is code on the hub. Remove "
                "attn_implementation from it"
            )
    prequantised = "quantization_config" in written
    if prequantised and quantization_config is not None:
        by = written["quantization_config"]
        name = by.get("quant_method") if isinstance(by, dict) else by
        raise ValueError(
            f"the checkpoint {place!r} is quantised already, by {name}. "
            "Leave quantization_config (--quantise) out, or take the checkpoint in floating point."
        )
    shapes = dict.fromkeys((SHARED, HEAD), (config.vocab_size, config.d_model))
    quantised = prequantised or quantization_config is not None
    if quantised or isinstance(device_map, Mapping):
        with torch.device("meta"):
            skeleton = model_class(copy.deepcopy(config))
        shapes = {name: tuple(weight.shape) for name, weight in skeleton.state_dict().items()}
        check_modules(skeleton, device_map)
    if not prequantised:
        check_shapes({name: tensor.shape for name, tensor in stored.items()}, shapes, place)
    with unreadable_in_a_sentence("the backbone", place), _without_warnings_of_loading():
        config._attn_implementation = attention_of(config) if attn_implementation is None else attn_implementation
        loaded = model_class.from_pretrained(
            source.place,
            config=config,
            dtype="auto" if dtype is None else dtype,
            quantization_config=quantization_config,
            device_map=with_devices(device_map),
            max_memory=with_devices(max_memory),
            offload_folder=offload_folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.arguments,
        )
        model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if quantised:
        prepare_layers(model)
        check_shapes({name: shape_of(weight) for name, weight in model.named_parameters()}, shapes, place)
    check_ties(model)
    check_loaded(model, info, stored, place, written)
    if is_untied(model):
        mark_untied(model)
    for owner in (model, *model.children()):  # encoder and decoder have their own configs
        if isinstance(owner, PreTrainedModel):
            owner.config.return_dict = True  # without it transformers cannot generate
    for target in (model.config, model.generation_config):  # some configs lack it; all published configs have this id
        if getattr(target, "decoder_start_token_id", None) is None:
            target.decoder_start_token_id = model.config.pad_token_id
    return freeze(model)


def attention_of(config: PretrainedConfig) -> str | None:
    """Return the attention implementation of a new model. None leaves the choice to transformers."""
    # before 5.18, umT5 with sdpa is not causal where it has no cache
    if config.model_type == "umt5" and Version(transformers.__version__).release < (5, 18):
        return "eager"
    return config._attn_implementation
