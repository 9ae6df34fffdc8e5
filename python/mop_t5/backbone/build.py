"""Build frozen backbones with random weights: for tests, demonstrations and counting parameters."""

from typing import Any

import torch
from transformers import MT5Config, PretrainedConfig, PreTrainedModel, T5Config, UMT5Config

from mop_t5.backbone.load import MODEL_CLASSES, as_dtype, attention_of, freeze, mark_untied

_Fields = dict[str, Any]
_Backbones = dict[str, tuple[type[PretrainedConfig], _Fields]]  # name -> config class and fields
# size -> fields of T5, and of its successors with gated networks: T5 1.1, flan-T5, mT5 and umT5
_SIZES: dict[str, _Fields] = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "3b": {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32},
    "11b": {"d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_layers": 24, "num_heads": 128},
}
_GATED_SIZES: dict[str, _Fields] = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
_UMT5_SIZES = {size: shape for size, shape in _GATED_SIZES.items() if size != "large"}
_UNTIED: _Fields = {"tie_word_embeddings": False}
_T5_1_1: _Fields = {"feed_forward_proj": "gated-gelu", **_UNTIED}


def _family(prefix: str, config: type[PretrainedConfig], sizes: dict[str, _Fields], fields: _Fields) -> _Backbones:
    return {f"{prefix}-{size}": (config, shape | fields) for size, shape in sizes.items()}


# tie_word_embeddings is as in the published checkpoint
_KNOWN: _Backbones = {
    **_family("t5", T5Config, _SIZES, {}),
    **_family("t5-v1_1", T5Config, _GATED_SIZES, _T5_1_1),
    **_family("flan-t5", T5Config, _GATED_SIZES, _T5_1_1),
    **_family("mt5", MT5Config, _GATED_SIZES, _UNTIED),
    **_family("umt5", UMT5Config, _UMT5_SIZES, {"vocab_size": 256384, **_UNTIED}),
    "t5-pegasus-base": (MT5Config, {**_GATED_SIZES["base"], "vocab_size": 50000, **_UNTIED}),
}


def known_backbones() -> tuple[str, ...]:
    """Return the names that `build_backbone` accepts."""
    return tuple(_KNOWN)


def build_backbone(
    config: PretrainedConfig | str,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """Return a frozen backbone with random weights in evaluation mode.

    The weights depend on `seed` only, on every device. The global random state stays as it was.

    Args:
        config: A T5Config, MT5Config or UMT5Config, or a name from `known_backbones`.
        seed: Seed of the weights.
        device: Device of the model. "meta" allocates nothing.
        dtype: Data type of the weights. None for float32.
        **overrides: Fields of the config, such as num_layers=2 or tie_word_embeddings=False.

    Raises:
        TypeError: `config` is neither a config nor a name, or `dtype` is no floating type.
        ValueError: `config` is an unknown name or has another architecture, or an override is no field.
    """
    dtype = as_dtype(dtype)
    config, untied = _resolve_config(config, overrides)
    on_meta = device is not None and torch.device(device).type == "meta"
    with torch.device("meta" if on_meta else "cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config._attn_implementation = attention_of(config)
        model = MODEL_CLASSES[config.model_type](config)
        if untied:
            # the same distribution as that of transformers for the head of an untied T5
            weight = torch.empty(config.vocab_size, config.d_model).normal_(std=config.initializer_factor)
            model.get_output_embeddings().weight = torch.nn.Parameter(weight)
            mark_untied(model)
    if not (on_meta and dtype is None):
        torch.nn.Module.to(model, device=device, dtype=dtype)
    return freeze(model)


def _resolve_config(config: PretrainedConfig | str, overrides: dict[str, Any]) -> tuple[PretrainedConfig, bool]:
    """Return a new config with the overrides, and whether its output head is untied."""
    if isinstance(config, str):
        if config not in _KNOWN:
            raise ValueError(
                f"config {config!r} is not a known backbone; expected one of {', '.join(_KNOWN)}, or a config object. "
                "For a checkpoint use mop_t5.load_backbone."
            )
        config_class, fields = _KNOWN[config]
    elif isinstance(config, PretrainedConfig):
        if config.model_type not in MODEL_CLASSES:
            raise ValueError(
                f"config must be of model_type {', '.join(MODEL_CLASSES)}; got {config.model_type!r}, which has no T5 "
                "attention."
            )
        config_class, fields = type(config), config.to_dict()
        # T5Config(tie_word_embeddings=False) stores True. Only scale_decoder_outputs=False shows that it was False.
        if not getattr(config, "scale_decoder_outputs", True):
            fields["tie_word_embeddings"] = False
    else:
        raise TypeError(f"config must be a transformers config or a name; got {type(config).__name__}.")
    unknown = sorted(set(overrides) - set(config_class().to_dict()) - {"decoder_start_token_id"})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not a field of {config_class.__name__}. Check the spelling.")
    fields = {**fields, **overrides}
    if fields.get("decoder_start_token_id") is None:  # T5Config has no default; the published checkpoints have 0
        fields["decoder_start_token_id"] = fields.get("pad_token_id", 0)
    fields.pop("scale_decoder_outputs", None)
    return config_class.from_dict(fields), fields.get("tie_word_embeddings") is False
