"""Whether the weights of a checkpoint are those of the model that its config.json describes, all of them.

A backbone is frozen: what is loaded at random stays random, and nothing that is trained with it says so.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from mop_t5.backbone.hub_files import find, read_json

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # names of one tensor
HEAD = "lm_head.weight"
_SHOWN = 4


class Held(NamedTuple):
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


def held_tensors(path_or_hub_name: str) -> dict[str, Held]:
    """Return every tensor in the files that transformers would read, by name; no values are read.

    Empty where there is no file of a known name. Raises ValueError for a file that holds something else than tensors,
    and for a folder with a whole file beside shards: transformers would read the whole file, however old it is.
    """
    for name, read in (("model.safetensors", _in_safetensors), ("pytorch_model.bin", _in_torch_file)):
        index = f"{name}.index.json"
        files = [find(path_or_hub_name, name)]
        if files == [None] and find(path_or_hub_name, index) is not None:
            files = [find(path_or_hub_name, shard) for shard in _shards(path_or_hub_name, index)]
        elif files != [None] and os.path.exists(os.path.join(path_or_hub_name, index)):
            raise ValueError(f"it holds both {name} and {index}, two checkpoints. Remove the older one")
        if any(files):
            return {tensor: held for path in files if path for tensor, held in read(path).items()}
    return {}


def _shards(path_or_hub_name: str, index: str) -> list[str]:
    files = read_json(path_or_hub_name, index).get("weight_map")
    if not isinstance(files, dict):
        raise ValueError(f"{index} has no weight_map, which says what file holds a tensor")
    return sorted(set(files.values()))


def _in_safetensors(path: Path) -> dict[str, Held]:
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        return {name: Held(found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}


def _in_torch_file(path: Path) -> dict[str, Held]:
    try:
        found = torch.load(path, "meta", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path.name} is damaged, or holds more than tensors, such as a whole pickled model. Save the state_dict() "
            "of the model there, or better: model.save_pretrained(folder)"
        ) from error
    tensors = found if isinstance(found, dict) else {}
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        held = f"a dictionary of {', '.join(map(str, tensors))[:80]}" if tensors else f"a {type(found).__name__}"
        raise ValueError(
            f"{path.name} must hold a dictionary of tensors, a state_dict; got {held}. Save only the state_dict of the "
            "model there"
        )
    return {name: Held(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def check_tables(held: Mapping[str, Held], shape: tuple[int, int], place: str) -> None:
    """Raise ValueError unless the embeddings and the head of a checkpoint have a shape.

    To be called before transformers loads them: of a head and embeddings that do not fit it makes an error that tells
    nothing (5.15 to 5.24).
    """
    tables = {name: held[name].shape for name in (EMBEDDINGS[0], HEAD) if name in held}
    refuse_misfit(place, (), (), [(name, found, shape) for name, found in tables.items() if found != shape])


def check_loaded(
    model: PreTrainedModel, info: Mapping[str, Iterable], held: Mapping[str, Held], place: str, *, says_untied: bool
) -> None:
    """Raise ValueError unless a model has all its weights from the checkpoint, and the checkpoint no others.

    Args:
        model: The model as transformers loaded it.
        info: What transformers says of the loading, `output_loading_info`.
        held: The tensors in the checkpoint; empty if they are not known.
        place: The folder or hub name, for messages.
        says_untied: Whether config.json says that the output head has weights of its own.
    """
    missing = set(info["missing_keys"])
    if held and not hasattr(model, "hf_quantizer"):
        names = {name.removeprefix("transformer.") for name in held}  # transformers reads these names, too
        missing |= set() if names & set(EMBEDDINGS) else {EMBEDDINGS[0]}  # transformers takes the head in its place
        missing |= {HEAD} if says_untied and HEAD not in names else set()  # and ties the head where it is missing
        numbers = sorted(name for name, tensor in held.items() if not _is_floating(tensor.dtype))
        if numbers:
            raise ValueError(
                f"the weights in {place!r} must be floating point; {_some(numbers)} "
                f"{'are' if numbers[1:] else 'is'} {held[numbers[0]].dtype}, so the checkpoint is quantised and "
                "config.json does not say how. Take the checkpoint in floating point."
            )
    refuse_misfit(place, missing, info["unexpected_keys"], info["mismatched_keys"])
    for name in EMBEDDINGS[1:]:
        if model.get_parameter(name) is not model.shared.weight:
            raise ValueError(
                f"{name} in {place!r} differs from {EMBEDDINGS[0]}. All T5s share one table, so the checkpoint is of "
                "another model or damaged. Copy it again."
            )
    check_finite(model.named_parameters(), place)


def refuse_misfit(
    place: str | os.PathLike,
    missing: Iterable[str],
    unknown: Iterable[str],
    mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]] = (),
) -> None:
    """Raise ValueError if there is any: it names the weights and says what may have happened.

    Args:
        place: Where the checkpoint is.
        missing: Names of the model that the checkpoint lacks.
        unknown: Names of the checkpoint that the model lacks.
        mismatched: Name, shape in the checkpoint, shape in the model.
    """
    missing, unknown, mismatched = sorted(missing), sorted(unknown), sorted(mismatched, key=str)
    # encoder and decoder have the table under names of their own
    missing = [name for name in missing if name not in EMBEDDINGS[1:] or EMBEDDINGS[0] not in missing]
    if HEAD in missing and EMBEDDINGS[0] in missing:  # tied to it, or missing like all others
        missing = [name for name in missing if name != HEAD]
    shapes = [f"{name} has shape {tuple(found)}, not {tuple(expected)}" for name, found, expected in mismatched]
    wrong = [*_first(missing, "missing"), *_first(unknown, "unknown"), *shapes[:_SHOWN]]
    wrong += ["..."] if len(shapes) > _SHOWN else []
    if wrong:
        raise ValueError(
            f"the weights in {str(place)!r} are not those that its config.json describes: {'; '.join(wrong)}. "
            f"{_cure(missing, unknown, any(tuple(found) == (0,) for _, found, _ in mismatched))}"
        )


def check_finite(weights: Iterable[tuple[str, torch.Tensor]], place: str | os.PathLike) -> None:
    """Raise ValueError for a weight that is NaN or infinite. Tensors of quantisers are not looked at."""
    plain = (torch.Tensor, torch.nn.Parameter)
    wrong = [n for n, t in weights if type(t) in plain and t.is_floating_point() and not t.isfinite().all()]
    if wrong:
        raise ValueError(
            f"the weights in {str(place)!r} hold values that are not finite: {_some(wrong)}. The checkpoint is of a "
            "training that diverged, or its values do not fit into the dtype. Take another one, or dtype='float32'."
        )


def _is_floating(dtype: str) -> bool:
    return dtype.lower().startswith(("f", "bf"))  # F32, BF16 of safetensors; float32, bfloat16 of torch


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")


def _first(names: list[str], what: str) -> list[str]:
    more = [f"{len(names) - _SHOWN} more are {what}"] if names[_SHOWN:] else []
    return [f"{name} is {what}" for name in names[:_SHOWN]] + more


def _cure(missing: list[str], unknown: list[str], empty: bool) -> str:
    """Return what may have happened to a checkpoint, and what to do."""
    biases, gates = "SelfAttention.relative_attention_bias", ".wi_0."
    prefix = next((p for p in map(_prefix_of(missing), unknown) if p), None)
    if prefix:
        return f"Its names begin with {prefix!r}: save the weights without it, from the model that was wrapped."
    if empty:
        return "Empty tensors are the shards of DeepSpeed ZeRO-3: gather the weights before you save them."
    if any("lora_" in name or ".base_layer." in name for name in unknown):
        return "It holds an adapter of PEFT beside the weights: call merge_and_unload(), and save what it returns."
    if "decoder.final_layer_norm.weight" in missing and "encoder.final_layer_norm.weight" not in missing:
        return "It is an encoder alone: take the checkpoint of the whole model."
    for names, what in (
        (any(gates in n for n in unknown), "Its feed-forward networks are gated, as of mT5 and T5 1.1"),
        (any(gates in n for n in missing), "Its feed-forward networks are not gated, as of the first T5"),
        (any(biases in n for n in unknown), "It has position biases in every layer, as of umT5"),
        (bool(missing) and all(biases in n for n in missing), "It has position biases in one layer, as of T5 and mT5"),
    ):
        if names:
            return f"{what}: take the config.json that it was saved with."
    return "Copy the checkpoint again, with the config.json that it was saved with."


def _prefix_of(missing: list[str]):
    expected = set(missing)

    def prefix(name: str) -> str | None:
        parts = name.split(".")
        return next((".".join(parts[:i]) + "." for i in range(1, 4) if ".".join(parts[i:]) in expected), None)

    return prefix
