"""Check that a checkpoint holds exactly the weights that its config.json describes.

A backbone is frozen, so a weight that is missing from the checkpoint would stay random, and no later result would show
it.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from mop_t5.backbone.source import Source
from mop_t5.backbone.weights import plain_parts, weights_of
from mop_t5.files import StrPath

SHARED = "shared.weight"
EMBEDDINGS = (SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # names of one tensor
HEAD = "lm_head.weight"
_MOST_DESCRIBED = 32  # times the values of a checkpoint, which may be packed or lack a part of the model
_GATHER = "Empty tensors are the shards of DeepSpeed ZeRO-3: gather the weights before you save them"
_SHOWN = 4  # largest number of names in a message

Misfit = tuple[str, Iterable[int], Iterable[int]]  # name, shape in the checkpoint, shape in the model


class StoredTensor(NamedTuple):
    """Data type and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


def stored_tensors(source: Source) -> dict[str, StoredTensor]:
    """Return data type and shape of every tensor in the weight files that transformers would read, not the values.

    Args:
        source: The checkpoint.

    Returns:
        The tensors by name. Empty if there is no file of a known name.

    Raises:
        ValueError: A file holds something else than tensors, or the folder has a whole file beside shards. (Then
            transformers would read the whole file, even if it is older.)
    """
    for name, read in (("model.safetensors", _in_safetensors), ("pytorch_model.bin", _in_torch_file)):
        index = f"{name}.index.json"
        whole, has_index = source.find(name), (source.folder / index).exists()
        if whole is not None and has_index:
            raise ValueError(f"it holds both {name} and {index}, two checkpoints. Remove the older one")
        files = [whole]
        if whole is None and source.find(index) is not None:
            shards = source.find_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(f"{index} has no weight_map, which names the file of each tensor")
            # transformers would read any path
            strange = [shard for shard in shards.values() if not _is_file_name(shard)]
            if strange or not shards:
                raise ValueError(f"the weight_map of {index} must name files beside it; got {[*strange, shards][0]!r}")
            files = [source.find(shard) for shard in sorted(set(shards.values()))]
        if any(files):
            return {tensor: stored for path in files if path for tensor, stored in read(path).items()}
    return {}


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _in_safetensors(path: Path) -> dict[str, StoredTensor]:
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  the file is no dictionary
        return {name: StoredTensor(found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}


def _in_torch_file(path: Path) -> dict[str, StoredTensor]:
    found = read_state_dict(path, "meta")
    return {name: StoredTensor(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in found.items()}


def read_state_dict(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return the tensors of a file that torch.save wrote. Nothing in the file runs.

    Args:
        path: The file.
        device: Device of the tensors. "meta" reads no values.

    Raises:
        ValueError: The file is damaged, or holds something else than a state_dict.
    """
    try:
        found = torch.load(path, device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file raises nearly every kind of error
        raise ValueError(
            f"{path.name} is damaged, or holds more than tensors, such as a whole pickled model. Save the state_dict() "
            "of the model there, or better: model.save_pretrained(folder)"
        ) from error
    tensors = found if isinstance(found, dict) else {}
    if not tensors or not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in tensors.items()):
        got = f"a dictionary of {', '.join(map(str, tensors))[:80]}" if tensors else f"a {type(found).__name__}"
        raise ValueError(
            f"{path.name} must hold a dictionary of tensors, a state_dict; got {got}. Save only the state_dict of the "
            "model there"
        )
    return dict(tensors)


def check_described_size(stored: Mapping[str, StoredTensor], config: PretrainedConfig) -> None:
    """Check that the weights of a checkpoint are not far fewer than its config.json describes.

    Memory is taken for the described weights, before any other check sees that the checkpoint lacks them.

    Args:
        stored: The tensors of the checkpoint. They may be quantised, so that a value takes half a byte.
        config: The config of the model.

    Raises:
        ValueError: config.json describes many times the values of the checkpoint.
    """
    attention, layers = 4 * config.d_model * config.num_heads * config.d_kv, config.num_layers
    feed_forward = 2 * config.d_model * config.d_ff
    described = config.vocab_size * config.d_model + config.relative_attention_num_buckets * config.num_heads
    described += layers * (attention + feed_forward) + config.num_decoder_layers * (2 * attention + feed_forward)
    held = sum(math.prod(one.shape) for one in stored.values())
    if stored and (described > _MOST_DESCRIBED * held or layers + config.num_decoder_layers > len(stored)):
        empty = any(0 in one.shape for one in stored.values())
        cure = _GATHER if empty else "Take the config.json that it was saved with"
        raise ValueError(
            f"config.json describes at least {described:,} weights in {layers + config.num_decoder_layers:,} layers, "
            f"and the checkpoint holds {held:,} in {len(stored):,} tensors. {cure}"
        )


def check_shapes(found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    """Check the shapes of weights, of a checkpoint before transformers loads it and of a quantised model afterwards.

    The error of transformers for a wrong shape of the embeddings (5.15 to 5.24) does not say what is wrong. It raises
    no error for a wrong shape of a weight that it quantises, and loads parts of quantised weights of any shape.

    Args:
        found: The shapes of the weights.
        shapes: The expected shapes.
        place: Folder or hub name, for messages.

    Raises:
        ValueError: A weight has another shape.
    """
    found = {name.removeprefix("transformer."): shape for name, shape in found.items()}
    refuse_misfit(place, (), (), [(n, shape, shapes[n]) for n, shape in found.items() if shape != shapes.get(n, shape)])


def check_loaded(
    model: PreTrainedModel, info: dict[str, Any], stored: Mapping[str, StoredTensor], place: str, config: dict[str, Any]
) -> None:
    """Check that a model has all its weights from a checkpoint, and that the checkpoint has no other weights.

    Args:
        model: The model as transformers loaded it.
        info: The report of transformers about the loading, `output_loading_info`.
        stored: The tensors of the checkpoint. Empty if they are not known.
        place: Folder or hub name, for messages.
        config: Content of config.json, which states whether the output head has its own weights, and how the
            checkpoint is quantised.

    Raises:
        ValueError: A weight is missing, unknown, of another shape, quantised or not finite, or the embeddings of
            encoder and decoder differ.
    """
    says_untied, prequantised = config.get("tie_word_embeddings") is False, "quantization_config" in config
    missing = set(info["missing_keys"])
    if stored:
        names = {name.removeprefix("transformer.") for name in stored}  # transformers reads these names, too
        # transformers replaces missing embeddings by the head, and a missing head by the embeddings. A quantised weight
        # has parts, whose names begin with its name or with the name of its layer
        missing |= set() if _names_any(names, EMBEDDINGS, prequantised) else {SHARED}
        missing |= {HEAD} if says_untied and not _names_any(names, (HEAD,), prequantised) else set()
    if stored and not prequantised:
        # floating types are F32 and BF16 in safetensors, float32 and bfloat16 in torch
        numbers = sorted(name for name, one in stored.items() if not one.dtype.lower().startswith(("f", "bf")))
        if numbers:
            raise ValueError(
                f"the weights in {place!r} must be floating point; {_some(numbers)} "
                f"{'are' if numbers[1:] else 'is'} {stored[numbers[0]].dtype}, so the checkpoint is quantised and "
                "config.json does not say how. Take the checkpoint in floating point."
            )
    refuse_misfit(place, missing, info["unexpected_keys"], info["mismatched_keys"])
    table = model.get_parameter(SHARED)
    for name in EMBEDDINGS[1:]:
        other = model.get_parameter(name)
        if other is not table and not (other.is_meta or table.is_meta):  # an offloaded table has a tensor per name
            raise ValueError(
                f"{name} in {place!r} differs from {SHARED}. All T5s share one table, so the checkpoint is of "
                "another model or damaged. Copy it again."
            )
    check_finite(weights_of(model).items(), place)


def _names_any(names: Iterable[str], weights: Iterable[str], in_parts: bool) -> bool:
    """Return whether any of `weights` is among `names`, whole or, if wanted, in parts."""
    names = set(names)
    layers = tuple(weight.removesuffix("weight") for weight in weights)
    return not names.isdisjoint(weights) or (in_parts and any(name.startswith(layers) for name in names))


def refuse_misfit(
    place: StrPath, missing: Iterable[str], unknown: Iterable[str], mismatched: Iterable[Misfit] = ()
) -> None:
    """Raise an error if any weight does not fit. The message names the weights and the probable cause.

    Args:
        place: Folder or hub name of the checkpoint.
        missing: Names of weights that the checkpoint lacks.
        unknown: Names of weights that the model lacks.
        mismatched: Weights of another shape.

    Raises:
        ValueError: `missing`, `unknown` or `mismatched` is not empty.
    """
    missing, unknown, mismatched = sorted(missing), sorted(unknown), sorted(mismatched, key=str)
    # encoder and decoder have their own names for the shared table
    missing = [name for name in missing if name not in EMBEDDINGS[1:] or SHARED not in missing]
    if HEAD in missing and SHARED in missing:  # the head is tied to the table, or missing like all others
        missing.remove(HEAD)
    shapes = [f"{name} has shape {tuple(found)}, not {tuple(expected)}" for name, found, expected in mismatched]
    wrong = [*_first(missing, "missing"), *_first(unknown, "unknown"), *shapes[:_SHOWN]]
    wrong += ["..."] if len(shapes) > _SHOWN else []
    if wrong:
        raise ValueError(
            f"the weights in {str(place)!r} are not those that its config.json describes: {'; '.join(wrong)}. "
            f"{_cure(missing, unknown, any(tuple(found) == (0,) for _, found, _ in mismatched))}"
        )


def check_finite(weights: Iterable[tuple[str, torch.Tensor]], place: StrPath) -> None:
    """Check that weights are finite, and the parts of quantised weights.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    wrong = [n for n, t in weights if not all(map(_is_finite, plain_parts(t)))]
    if wrong:
        raise ValueError(
            f"the weights in {str(place)!r} hold values that are not finite: {_some(wrong)}. The training diverged, or "
            "the values do not fit into the dtype. Take another checkpoint, or dtype='float32'."
        )


def _is_finite(values: torch.Tensor) -> bool:
    return values.is_meta or not values.is_floating_point() or bool(values.isfinite().all())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")


def _first(names: list[str], problem: str) -> list[str]:
    more = [f"{len(names) - _SHOWN} more are {problem}"] if names[_SHOWN:] else []
    return [f"{name} is {problem}" for name in names[:_SHOWN]] + more


def _cure(missing: list[str], unknown: list[str], has_empty: bool) -> str:
    """Return the probable cause of a misfit, and what to do."""
    biases, gates = "SelfAttention.relative_attention_bias", ".wi_0."
    prefix = next((p for p in (_prefix(name, set(missing)) for name in unknown) if p), None)
    if prefix:
        return f"Its names begin with {prefix!r}: save the weights without it, from the model that was wrapped."
    if has_empty:
        return f"{_GATHER}."
    if any("lora_" in name or ".base_layer." in name for name in unknown):
        return "It holds an adapter of PEFT beside the weights: call merge_and_unload(), and save its result."
    if "decoder.final_layer_norm.weight" in missing and "encoder.final_layer_norm.weight" not in missing:
        return "It is an encoder alone: take the checkpoint of the whole model."
    for applies, cause in (
        (any(gates in n for n in unknown), "Its feed-forward networks are gated, as of mT5 and T5 1.1"),
        (any(gates in n for n in missing), "Its feed-forward networks are not gated, as of the first T5"),
        (any(biases in n for n in unknown), "It has position biases in every layer, as of umT5"),
        (bool(missing) and all(biases in n for n in missing), "It has position biases in one layer, as of T5 and mT5"),
    ):
        if applies:
            return f"{cause}: take the config.json that it was saved with."
    return "Copy the checkpoint again, with the config.json that it was saved with."


def _prefix(name: str, expected: set[str]) -> str | None:
    """Return the prefix of up to three parts that a wrapper put before an expected name. None if there is none."""
    parts = name.split(".")
    return next((".".join(parts[:i]) + "." for i in range(1, 4) if ".".join(parts[i:]) in expected), None)
