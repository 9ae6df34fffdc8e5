"""The frozen T5, mT5 or umT5 underneath: load one, build one with random weights, describe its shape, freeze it."""

import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import transformers
from packaging.version import Version

from mop_t5.files import unreadable_in_a_sentence

_MINIMUM_TRANSFORMERS = "5.15"


def require_transformers(installed: str = transformers.__version__) -> None:
    """Raise ImportError unless `installed` has a T5 that runs on the attention interface.

    Up to 5.14 T5Attention is inline mathematics without keyword arguments, so there is nothing to plug a prefix into.
    """
    if Version(installed).release < Version(_MINIMUM_TRANSFORMERS).release:
        raise ImportError(
            f"mop_t5 needs transformers >= {_MINIMUM_TRANSFORMERS}, the first release whose T5 uses the attention "
            f"interface; found {installed}. Install it with: pip install 'transformers>={_MINIMUM_TRANSFORMERS},<6'"
        )


require_transformers()

from transformers import (  # noqa: E402  the version check comes first, so that an old release fails with its message
    AutoConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5ForConditionalGeneration,
)

from mop_t5.backbone.checkpoint_weights import check_loaded, check_tables, held_tensors  # noqa: E402
from mop_t5.backbone.hub_files import read_json  # noqa: E402

_MODEL_CLASSES = {
    "t5": T5ForConditionalGeneration,
    "mt5": MT5ForConditionalGeneration,
    "umt5": UMT5ForConditionalGeneration,
}

_MT5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
# name -> (config class, fields). tie_word_embeddings is what the published checkpoint has.
_KNOWN = {
    "t5-small": (T5Config, {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}),
    "t5-base": (T5Config, {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "t5-large": (T5Config, {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16}),
    "mt5-small": (
        MT5Config,
        {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "tie_word_embeddings": False},
    ),
    "mt5-base": (MT5Config, {**_MT5_BASE, "tie_word_embeddings": False}),
    "t5-pegasus-base": (MT5Config, {**_MT5_BASE, "vocab_size": 50000, "tie_word_embeddings": False}),
}


@dataclass(frozen=True)
class BackboneShape:
    """What a method needs to know of a backbone, and what an adapter folder remembers of the one it was trained on."""

    model_type: str
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    vocab_size: int
    is_gated_act: bool = False  # whether feed-forward networks have two maps inwards, wi_0 and wi_1

    @classmethod
    def of(cls, model: PreTrainedModel) -> "BackboneShape":
        return cls(**{name: getattr(model.config, name) for name in cls.__dataclass_fields__})

    @property
    def inner(self) -> int:
        """Width of all heads of one key or value row; not always d_model (mT5-small, T5-3B)."""
        return self.num_heads * self.d_kv

    def layers(self, attention: str) -> int:
        """Number of layers that have this attention ("encoder_self", "decoder_self" or "cross")."""
        return self.num_layers if attention == "encoder_self" else self.num_decoder_layers

    def differences(self, other: dict) -> list[str]:
        """Where this shape and a saved one (a dict of the same fields) differ, as `field: saved x, here y`."""
        mine = asdict(self)
        other = {"is_gated_act": self.is_gated_act, **other}  # older folders do not say; the names in the hash differ
        return [f"{key}: saved {other.get(key)}, here {mine[key]}" for key in mine if other.get(key) != mine[key]]


def known_backbones() -> tuple[str, ...]:
    """Names that build_backbone accepts."""
    return tuple(_KNOWN)


def check_backbone(model) -> None:
    """Raise TypeError unless model is a T5, mT5 or umT5 with encoder, decoder and language-model head.

    Raises ValueError where layers of it are quantised by torch.ao.quantization: no gradient passes them. Warns of an
    untied umT5 whose decoder output transformers scales as if it were tied.
    """
    if not isinstance(model, tuple(_MODEL_CLASSES.values())):
        expected = ", ".join(c.__name__ for c in _MODEL_CLASSES.values())
        raise TypeError(
            f"model must be one of {expected}; got {type(model).__name__}. Use mop_t5.load_backbone or "
            "mop_t5.build_backbone, or pass the unwrapped transformers model."
        )
    config = model.config
    scales = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    if config.model_type == "umt5" and is_untied(model) and scales:
        warnings.warn(
            f"this umT5 has a head of its own, but transformers {transformers.__version__} scales the head's input by "
            "d_model^-0.5, as for a tied head. Its losses differ from those of a backbone that mop_t5.load_backbone or "
            "transformers 5.24 has loaded.",
            stacklevel=3,
        )
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            raise ValueError(
                f"layer {name} of the backbone is a {type(module).__name__} of torch.ao.quantization, which passes no "
                "gradients. Attach to the model in floating point, and quantise the whole after training."
            )


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """No parameter asks for a gradient, dropout is off. Returns the same model."""
    return model.requires_grad_(False).eval()


def is_untied(model: PreTrainedModel) -> bool:
    """Whether the output head has weights of its own."""
    return model.lm_head.weight is not model.shared.weight


def _mark_untied(model: PreTrainedModel) -> None:
    # transformers 5 forces tie_word_embeddings=True in every T5-like config. Left so, any later tie_weights() (Trainer
    # calls it after loading a checkpoint) would silently overwrite the head, and umT5 would rescale its decoder output.
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys.pop("lm_head.weight", None)


@contextmanager
def _without_warnings_of_loading():
    # "You should update the config with tie_word_embeddings=False": the config of a T5 cannot be told so, see above.
    # The report of weights that did not fit: check_loaded makes an error of it. An error of a quantiser refers to it.
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record):
        message = record.getMessage()
        return "tied weights mapping" not in message and ("LOAD REPORT" not in message or "CONVERSION" in message)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _as_dtype(dtype) -> torch.dtype | None:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch.dtype or its name, such as torch.bfloat16; got {dtype!r}.")
    return dtype


def load_backbone(path_or_hub_name: str | os.PathLike, *, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """Return a frozen T5, mT5 or umT5 in evaluation mode, from a folder written by save_pretrained or from the hub.

    A head of its own (mT5, T5 1.1, T5-pegasus) stays untied, a tied one tied. dtype=None keeps the checkpoint's.

    Raises:
        OSError: There is no such folder or hub name, or a file is missing.
        ImportError: The checkpoint is quantised, and the package that reads it is missing.
        ValueError: The folder holds something else, or weights that are not those of its config.json: a weight that is
            missing, unknown, of another shape, not floating point or not finite.
    """
    dtype = _as_dtype(dtype)
    path = os.fspath(path_or_hub_name)
    _check_folder(path)
    with unreadable_in_a_sentence("the backbone", path):
        written = read_json(path, "config.json")
        read_json(path, "generation_config.json")  # transformers takes its defaults in the place of a damaged one
        config = AutoConfig.from_pretrained(path)
    model_class = _MODEL_CLASSES.get(config.model_type)
    if model_class is None:
        raise ValueError(
            f"path_or_hub_name {path!r} holds a {config.model_type!r} model; expected {', '.join(_MODEL_CLASSES)}."
        )
    with unreadable_in_a_sentence("the backbone", path):
        held = held_tensors(path)
    if "quantization_config" not in written:
        check_tables(held, (config.vocab_size, config.d_model), path)
    with unreadable_in_a_sentence("the backbone", path), _without_warnings_of_loading():
        config._attn_implementation = _attention(config)
        model, info = model_class.from_pretrained(
            path,
            config=config,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_loaded(model, info, held, path, says_untied=written.get("tie_word_embeddings") is False)
    if is_untied(model):
        _mark_untied(model)
    for owner in (model, model.encoder, model.decoder):
        owner.config.return_dict = True  # without it transformers cannot generate
    for target in (model.config, model.generation_config):  # some configs do not say it, all published ones say this
        if getattr(target, "decoder_start_token_id", None) is None:
            target.decoder_start_token_id = model.config.pad_token_id
    return freeze(model)


def _attention(config: PretrainedConfig) -> str | None:
    """Return the attention implementation of a new model: what its config asks for, or transformers' choice (None)."""
    # before, umT5 with sdpa is not causal where it has no cache
    if config.model_type == "umt5" and Version(transformers.__version__).release < (5, 18):
        return "eager"
    return config._attn_implementation


def _check_folder(path: str) -> None:
    """Raise ValueError for a folder that is not one of a backbone."""
    if not os.path.isdir(path):
        return
    holds = {name for name in os.listdir(path) if name.endswith(".json")}
    if "config.json" not in holds:
        cure = "Expected a folder written by save_pretrained."
        if "mop_config.json" in holds:
            cure = "It is an adapter folder: load its backbone first, then mop_t5.load(backbone, folder)."
        elif "adapter_config.json" in holds:
            cure = "It is an adapter folder of PEFT: call merge_and_unload(), and save_pretrained what it returns."
        elif "run.json" in holds:
            cure = "It is the folder of a run: give the backbone that its run.json names, or its folder backbone."
        raise ValueError(f"path_or_hub_name {path!r} has no config.json. {cure}")
    if "adapter_config.json" in holds:
        raise ValueError(
            f"path_or_hub_name {path!r} holds an adapter of PEFT (adapter_config.json) beside the backbone. Call "
            "merge_and_unload() and save_pretrained what it returns, or remove the adapter's files to do without it."
        )


def build_backbone(
    config: PretrainedConfig | str,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **overrides,
) -> PreTrainedModel:
    """A frozen backbone with random weights, in evaluation mode: for tests, demonstrations and counting parameters.

    config: a T5Config, MT5Config or UMT5Config, or a name out of known_backbones(). overrides: config fields, such as
    num_layers=2 or tie_word_embeddings=False. The weights depend on seed only, on every device, and the global random
    state stays as it was. On device="meta" nothing is allocated.
    """
    dtype = _as_dtype(dtype)
    config, untied = _resolve_config(config, overrides)
    model_class = _MODEL_CLASSES[config.model_type]
    on_meta = device is not None and torch.device(device).type == "meta"
    with torch.device("meta" if on_meta else "cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config._attn_implementation = _attention(config)
        model = model_class(config)
        if untied:
            weight = torch.empty(config.vocab_size, config.d_model)
            # as transformers draws an untied T5 head
            model.lm_head.weight = torch.nn.Parameter(torch.nn.init.normal_(weight, std=config.initializer_factor))
            _mark_untied(model)
    return freeze(model if on_meta and dtype is None else model.to(device=device, dtype=dtype))


def _resolve_config(config, overrides: dict) -> tuple[PretrainedConfig, bool]:
    """A fresh config with the overrides applied, and whether its output head is untied."""
    if isinstance(config, str):
        if config not in _KNOWN:
            raise ValueError(
                f"config {config!r} is not a known backbone; expected one of {', '.join(_KNOWN)}, or a config object. "
                "For a checkpoint use mop_t5.load_backbone."
            )
        config_class, fields = _KNOWN[config]
        fields = dict(fields)
    elif isinstance(config, PretrainedConfig):
        if config.model_type not in _MODEL_CLASSES:
            raise ValueError(
                f"config must be of model_type {', '.join(_MODEL_CLASSES)}; got {config.model_type!r}, which has no T5 "
                "attention."
            )
        config_class, fields = type(config), config.to_dict()
        # T5Config(tie_word_embeddings=False) says True afterwards; what is left of the wish is the missing rescaling.
        if not getattr(config, "scale_decoder_outputs", True):
            fields["tie_word_embeddings"] = False
    else:
        raise TypeError(f"config must be a transformers config or a name; got {type(config).__name__}.")
    unknown = sorted(set(overrides) - set(config_class().to_dict()) - {"decoder_start_token_id"})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not a field of {config_class.__name__}. Check the spelling.")
    fields.update(overrides)
    if fields.get("decoder_start_token_id") is None:  # T5Config has no default, the published checkpoints say 0
        fields["decoder_start_token_id"] = fields.get("pad_token_id", 0)
    fields.pop("scale_decoder_outputs", None)
    return config_class.from_dict(fields), fields.get("tie_word_embeddings") is False
