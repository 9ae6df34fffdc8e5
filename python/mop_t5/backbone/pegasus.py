"""The published checkpoints of T5-pegasus, made into a folder that `load_backbone` and `load_tokenizer` read.

Two layouts are known. TensorFlow: model.ckpt with the variable names of Google's T5 and bert4keras's config.json, as
ZhuiyiTechnology/t5-pegasus publishes it. PyTorch: pytorch_model.bin with the names of transformers and its config.json,
as renmada/t5-pegasus-pytorch made it from the former; conversions with these names and bert4keras's config.json exist,
too. Both come with a vocab.txt.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import MT5Config

from mop_t5.backbone.checkpoint_weights import check_finite, refuse_misfit
from mop_t5.backbone.load import build_backbone
from mop_t5.backbone.tokenizer import read_pegasus_vocabulary
from mop_t5.files import whole_folder

VOCABULARY = "vocab.txt"
_TORCH_FILES = ("model.safetensors", "pytorch_model.bin")
# bert4keras's field -> that of transformers; the decoder is as deep as the encoder
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "attention_head_size": "d_kv",
    "intermediate_size": "d_ff",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
}
_SUBLAYERS = {
    "encoder": ("SelfAttention", "DenseReluDense"),
    "decoder": ("SelfAttention", "EncDecAttention", "DenseReluDense"),
}


class Converted(NamedTuple):
    layout: str  # "TensorFlow" or "PyTorch"
    parameters: int
    vocabulary: int  # lines of vocab.txt
    left_out: tuple[str, ...]  # what the checkpoint holds beside the weights of the model


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    vocabulary: str | os.PathLike | None = None,
    specials: str = "cls_sep",
) -> Converted:
    """Write the model and its tokenizer to the folder `output`, which must be new or empty.

    checkpoint: folder of the published files. vocabulary: the vocab.txt if it is not in there. specials: see
    `T5PegasusTokenizer`; the ids that the decoder starts from and ends with go into the model's config. Raises
    FileNotFoundError for a missing file, FileExistsError for an output with content, and ValueError for weights that
    are not those of the config, all of them.
    """
    folder, output = Path(checkpoint), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder. Choose another one.")
    tokenizer = read_pegasus_vocabulary(folder / VOCABULARY if vocabulary is None else vocabulary, specials)
    config = read_config(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the vocabulary has {len(tokenizer)} tokens, more than the vocab_size of config.json, "
            f"{config.vocab_size}. Give the vocab.txt of this checkpoint."
        )
    model = build_backbone(config, tie_word_embeddings=False)
    layout, found = read_weights(folder)
    weights, left_out = (from_tensorflow if layout == "TensorFlow" else from_torch)(found)
    _check(weights, model.state_dict(), folder)
    model.load_state_dict(weights, strict=False)  # the stacks' names of the shared embedding are left out
    for target in (model.config, model.generation_config):
        target.pad_token_id = tokenizer.pad_token_id
        target.eos_token_id = tokenizer.eos_token_id
        target.decoder_start_token_id = tokenizer.decoder_start_token_id
    with whole_folder(output, "the backbone") as writing:
        model.save_pretrained(writing)
        tokenizer.save_pretrained(writing)
    return Converted(layout, sum(p.numel() for p in model.parameters()), len(tokenizer), left_out)


def read_config(folder: Path) -> MT5Config:
    """The sizes in config.json, written by transformers or by bert4keras. All else is as in mT5."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json. Give the folder of a published checkpoint.")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Copy it again.") from error
    written_by_transformers = isinstance(given, dict) and "d_model" in given
    fields = {name: name for name in _FIELDS.values()} if written_by_transformers else _FIELDS
    missing = sorted(set(fields) - set(given)) if isinstance(given, dict) else sorted(fields)
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}, so it is neither transformers' nor bert4keras's.")
    sizes = {name: given[field] for field, name in fields.items()}
    for field in ("relative_attention_num_buckets", "num_decoder_layers"):
        if field in given:
            sizes[field] = given[field]
    return MT5Config(**sizes)


def read_weights(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """The layout of the weights in a folder, and all its tensors by the names they have there."""
    found = [folder / name for name in _TORCH_FILES if (folder / name).is_file()]
    prefixes = [path.with_suffix("") for path in sorted(folder.glob("*.index"))]
    if len(found) + len(prefixes) != 1:
        several = ", ".join(path.name for path in found + prefixes) or "none"
        raise FileNotFoundError(
            f"{folder} must hold one set of weights, {', '.join(_TORCH_FILES)} or TensorFlow's model.ckpt.index and "
            f"its data; got {several}."
        )
    if prefixes:
        return "TensorFlow", _read_tensorflow(prefixes[0])
    (path,) = found
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} is damaged, or holds something else than weights. Copy it again.") from error
    return "PyTorch", weights


def from_tensorflow(variables: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Weights by transformers' names, and the names of the variables that are none of them.

    A kernel maps rows from the left, (in, out), and the table of position biases is (heads, buckets); transformers has
    both the other way round.
    """
    weights, left_out = {}, []
    for name, values in variables.items():
        theirs = _name_in_transformers(name)
        if theirs is None:
            left_out.append(name)
        else:
            is_embedding = theirs == "shared.weight"
            weights[theirs] = values if is_embedding or values.dim() < 2 else values.T.contiguous()
    return weights, tuple(sorted(left_out))


def from_torch(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Weights by transformers' names, and the names that say again what another one says.

    Older releases of transformers wrote the shared embedding under two more names, and a table of position biases for
    the cross-attention, which has none. Raises ValueError where an embedding is not the shared one.
    """
    again = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    for name in again:
        if name in tensors and "shared.weight" in tensors and not torch.equal(tensors[name], tensors["shared.weight"]):
            raise ValueError(f"{name} differs from shared.weight, so the weights are not those of a T5-pegasus.")
    left_out = tuple(name for name in (*again, unused) if name in tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, left_out


def _name_in_transformers(variable: str) -> str | None:
    whole = {
        "shared/embedding": "shared.weight",
        "encoder/rms_norm/scale": "encoder.final_layer_norm.weight",
        "decoder/rms_norm/scale": "decoder.final_layer_norm.weight",
        "decoder/logits/kernel": "lm_head.weight",
    }
    place = re.fullmatch(r"(encoder|decoder)/block_(\d{3})/layer_(\d{3})/(.+)", variable)
    if place is None:
        return whole.get(variable)
    stack, block, layer, rest = place[1], int(place[2]), int(place[3]), place[4]
    if layer >= len(_SUBLAYERS[stack]):
        return None
    start, sublayer = f"{stack}.block.{block}.layer.{layer}", _SUBLAYERS[stack][layer]
    if rest == "rms_norm/scale":
        return f"{start}.layer_norm.weight"
    own = r"(wi_0|wi_1|wo)/kernel" if sublayer == "DenseReluDense" else r"([qkvo]|relative_attention_bias)"
    matrix = re.fullmatch(f"{sublayer}/{own}", rest)
    return matrix and f"{start}.{sublayer}.{matrix[1]}.weight"


def _read_tensorflow(prefix: Path) -> dict[str, torch.Tensor]:
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "reading a TensorFlow checkpoint needs tensorflow, only for this: pip install tensorflow-cpu"
        ) from error
    reader = tensorflow.train.load_checkpoint(str(prefix))
    return {name: torch.as_tensor(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}


def _check(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], folder: Path) -> None:
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith("embed_tokens.weight")}
    mismatched = [
        (name, weights[name].shape, tensor.shape)
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    refuse_misfit(folder, expected.keys() - weights.keys(), weights.keys() - expected.keys(), mismatched)
    check_finite(weights.items(), folder)
