"""Convert published checkpoints of T5-pegasus to a folder that `load_backbone` and `load_tokenizer` read.

Two layouts are known. Both have a vocab.txt.

- TensorFlow, published by ZhuiyiTechnology/t5-pegasus: model.ckpt with the variable names of Google's T5, and the
  config.json of bert4keras.
- PyTorch, converted from the first layout by renmada/t5-pegasus-pytorch: pytorch_model.bin with the weight names of
  transformers, and the config.json of transformers. Some conversions have the config.json of bert4keras.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import MT5Config

from mop_t5.backbone.build import build_backbone
from mop_t5.backbone.checkpoint import EMBEDDINGS, HEAD, SHARED, check_finite, read_state_dict, refuse_misfit
from mop_t5.backbone.tensors import read_tensors
from mop_t5.backbone.tokenizer import read_pegasus_vocabulary
from mop_t5.files import StrPath, content_to_replace, read_json, whole_folder

VOCABULARY = "vocab.txt"
_TORCH_FILES = ("model.safetensors", "pytorch_model.bin")
# field of bert4keras -> field of transformers; the decoder is as deep as the encoder
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
# variable of the TensorFlow checkpoint -> name in transformers, for all variables outside of blocks
_OUTSIDE_BLOCKS = {
    "shared/embedding": SHARED,
    "encoder/rms_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/rms_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits/kernel": HEAD,
}


class Converted(NamedTuple):
    """Summary of a converted checkpoint.

    Attributes:
        layout: "TensorFlow" or "PyTorch".
        parameters: Number of parameters of the model.
        vocabulary: Number of lines of vocab.txt.
        left_out: Names in the checkpoint that are no weights of the model.
    """

    layout: str
    parameters: int
    vocabulary: int
    left_out: tuple[str, ...]


def convert_checkpoint(
    checkpoint: StrPath, output: StrPath, vocabulary: StrPath | None = None, specials: str = "cls_sep"
) -> Converted:
    """Write the model and its tokenizer to a new folder.

    Args:
        checkpoint: Folder of the published files.
        output: Folder to write. It must be new or empty.
        vocabulary: Path of vocab.txt, if it is not in `checkpoint`.
        specials: Special tokens around a text, see `T5PegasusTokenizer`. The model's config gets the ids of the tokens
            that the decoder starts from and ends with.

    Raises:
        FileExistsError: `output` has content.
        FileNotFoundError: A file is missing.
        OSError: The folder cannot be written.
        ValueError: The weights or the vocabulary do not fit config.json, or a file is damaged.
    """
    folder = Path(checkpoint)
    content_to_replace(output, False, cure="Choose another folder.")
    tokenizer = read_pegasus_vocabulary(folder / VOCABULARY if vocabulary is None else vocabulary, specials)
    config = _read_config(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the vocabulary has {len(tokenizer)} tokens, more than the vocab_size of config.json, "
            f"{config.vocab_size}. Give the vocab.txt of this checkpoint."
        )
    model = build_backbone(config, tie_word_embeddings=False)
    layout, weights, left_out = _read_weights(folder)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in EMBEDDINGS[1:]}
    mismatched = [(n, t.shape, shapes[n]) for n, t in weights.items() if t.shape != shapes.get(n, t.shape)]
    refuse_misfit(folder, shapes.keys() - weights.keys(), weights.keys() - shapes.keys(), mismatched)
    check_finite(weights.items(), folder)
    model.load_state_dict(weights, strict=False)  # encoder and decoder have more names for the shared embedding
    for target in (model.config, model.generation_config):
        target.pad_token_id = tokenizer.pad_token_id
        target.eos_token_id = tokenizer.eos_token_id
        target.decoder_start_token_id = tokenizer.decoder_start_token_id
    with whole_folder(output, "the backbone") as writing:
        model.save_pretrained(writing)
        tokenizer.save_pretrained(writing)
    return Converted(layout, sum(p.numel() for p in model.parameters()), len(tokenizer), left_out)


def _read_config(folder: Path) -> MT5Config:
    """Return the sizes in the config.json of transformers or bert4keras. All other fields are as in mT5."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json. Give the folder of a published checkpoint.")
    given = read_json(path, "Copy it again.")
    fields = {name: name for name in _FIELDS.values()} if "d_model" in given else _FIELDS
    missing = sorted(set(fields) - set(given))
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}, so it is neither transformers' nor bert4keras's.")
    fields = fields | {name: name for name in ("relative_attention_num_buckets", "num_decoder_layers") if name in given}
    sizes: dict[str, Any] = {name: given[field] for field, name in fields.items()}
    return MT5Config(**sizes)


def _read_weights(folder: Path) -> tuple[str, dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the layout of the weights in a folder, the weights by their names in transformers, and all other names."""
    found = [folder / name for name in _TORCH_FILES if (folder / name).is_file()]
    prefixes = [path.with_suffix("") for path in sorted(folder.glob("*.index"))]
    if len(found) + len(prefixes) != 1:
        got = ", ".join(path.name for path in found + prefixes) or "none"
        raise FileNotFoundError(
            f"{folder} must hold one set of weights, {', '.join(_TORCH_FILES)} or TensorFlow's model.ckpt.index and "
            f"its data; got {got}."
        )
    if prefixes:
        return "TensorFlow", *from_tensorflow(_read_tensorflow(prefixes[0]))
    (path,) = found
    return "PyTorch", *_from_torch(read_tensors(path) if path.suffix == ".safetensors" else read_state_dict(path))


def _read_tensorflow(prefix: Path) -> dict[str, torch.Tensor]:
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "reading a TensorFlow checkpoint needs tensorflow, which nothing else needs: pip install tensorflow-cpu"
        ) from error
    reader = tensorflow.train.load_checkpoint(str(prefix))
    return {name: torch.as_tensor(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}


def from_tensorflow(variables: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the weights by their names in transformers, and the names of all other variables.

    In the checkpoint a kernel has shape (in, out), and the table of position biases has shape (heads, buckets).
    transformers has the transposed shapes.

    Args:
        variables: The variables of a TensorFlow checkpoint by name.
    """
    names = {variable: _name_in_transformers(variable) for variable in variables}
    weights = {
        name: values if name == SHARED or values.dim() < 2 else values.T.contiguous()
        for variable, values in variables.items()
        if (name := names[variable]) is not None
    }
    return weights, tuple(sorted(variable for variable, name in names.items() if name is None))


def _from_torch(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the weights, and the names that the model does not need.

    Older releases of transformers wrote the shared embedding under two more names. They also wrote a table of position
    biases for the cross-attention, which uses no position biases.

    Raises:
        ValueError: An embedding differs from the shared embedding.
    """
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    shared = tensors.get(SHARED)
    for name in EMBEDDINGS[1:]:
        if shared is not None and name in tensors and not torch.equal(tensors[name], shared):
            raise ValueError(f"{name} differs from {SHARED}, so the weights are not those of a T5-pegasus.")
    left_out = tuple(name for name in (*EMBEDDINGS[1:], unused) if name in tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, left_out


def _name_in_transformers(variable: str) -> str | None:
    place = re.fullmatch(r"(encoder|decoder)/block_(\d{3})/layer_(\d{3})/(.+)", variable)
    if place is None:
        return _OUTSIDE_BLOCKS.get(variable)
    stack, block, layer, rest = place[1], int(place[2]), int(place[3]), place[4]
    if layer >= len(_SUBLAYERS[stack]):
        return None
    start, sublayer = f"{stack}.block.{block}.layer.{layer}", _SUBLAYERS[stack][layer]
    if rest == "rms_norm/scale":
        return f"{start}.layer_norm.weight"
    kernels = r"(wi_0|wi_1|wo)/kernel" if sublayer == "DenseReluDense" else r"([qkvo]|relative_attention_bias)"
    matrix = re.fullmatch(f"{sublayer}/{kernels}", rest)
    return f"{start}.{sublayer}.{matrix[1]}.weight" if matrix else None
