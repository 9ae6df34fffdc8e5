"""Tiny checkpoints of the T5 family, written by hand, so that every release of transformers reads the same files."""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 64,
    "num_layers": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
FAMILY = {"T5 1.0": "T5", "T5 1.1": "T5", "mT5": "MT5", "umT5": "UMT5"}  # the beginning of the names of the classes
# what the published config.json says, of T5 1.0 and of all others
FIRST: dict[str, Any] = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
OTHERS: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def options_of(member: str) -> dict[str, Any]:
    """Return the fields of the configuration."""
    return SIZES | (FIRST if member == "T5 1.0" else OTHERS)


def class_of(member: str) -> Any:
    """Return the class of the model."""
    return getattr(transformers, f"{FAMILY[member]}ForConditionalGeneration")


def fresh(member: str) -> Any:
    """Return a model that is made from its configuration."""
    config_class = getattr(transformers, f"{FAMILY[member]}Config")
    return class_of(member)(config_class(**options_of(member))).eval()


def write_checkpoint(member: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a checkpoint whose numbers follow from their names. A head of its own is in all but T5 1.0's."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in fresh(member).state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("embed_tokens.weight") or (name == "lm_head.weight" and member == "T5 1.0"):
            continue
        scale = {"layer_norm": 0.1, "relative_attention_bias": 1.0, "shared": 1.0, "lm_head": 1.0}
        size = next((s for part, s in scale.items() if part in name), 1.5 * tensor.shape[-1] ** -0.5)
        values = torch.randn(tensor.shape, generator=generator) * size + (1.0 if "layer_norm" in name else 0.0)
        tensors[name] = values.to(dtype)
    config = {"architectures": [class_of(member).__name__], "model_type": FAMILY[member].lower(), **options_of(member)}
    config |= {"torch_dtype": str(dtype).removeprefix("torch."), **changes}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(member: str, folder: Path, **options: Any) -> Any:
    """Return the model of a checkpoint."""
    return class_of(member).from_pretrained(folder, **options).eval()


def is_tied(model: Any) -> bool:
    """Tell whether the head and the embeddings are the same memory."""
    return model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()
