"""Measure the T5 family in the installed transformers: run once per release, with its folder on PYTHONPATH."""

import inspect
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.tables.record import CLOSE, Cell, difference, measured, shortened, write
from benchmarks.tables.t5_family import FAMILY, SIZES, fresh, is_tied, load, write_checkpoint

SOURCE = torch.tensor([[5, 6, 7, 8, 9, 1], [11, 12, 13, 1, 0, 0]])
MASK = (SOURCE != 0).long()
TARGET = torch.tensor([[0, 20, 21, 22, 23], [0, 24, 25, 26, 27]])
STEPS = 6  # generated tokens


@torch.no_grad()
def output_scale(model: Any) -> Cell:
    """Return the factor between the decoder's output and what the head gets."""
    output = model(input_ids=SOURCE, attention_mask=MASK, decoder_input_ids=TARGET, output_hidden_states=True)
    whole = model.lm_head(output.decoder_hidden_states[-1])
    ratio = (output.logits * whole).sum() / (whole * whole).sum()
    return round(ratio.item(), 4)


@torch.no_grad()
def _scores(model: Any, **options: Any) -> Tensor:
    """Return the scores of every step of a greedy `generate`. Finite, so that they can be compared."""
    steps = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "output_scores": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(SOURCE, **steps, **options).scores).nan_to_num(neginf=0.0)


def masks_unasked(model: Any) -> Cell:
    """Tell whether `generate` masks the padding of input_ids if no attention_mask is given."""
    return difference(_scores(model, attention_mask=MASK), _scores(model)) < CLOSE


@torch.no_grad()
def _cached(model: Any, reads: Tensor, **given: Any) -> Any:
    return model(input_ids=SOURCE, attention_mask=MASK, decoder_input_ids=reads, use_cache=True, **given)


def _cache_of(output: Any) -> tuple[str, Any]:
    name = "cache" if "cache" in output else "past_key_values"
    return name, output[name]


def cache_name(model: Any) -> Cell:
    """Return the names of the cache in forward's signature and in its output, and its class."""
    name, cache = _cache_of(_cached(model, TARGET))
    taken = [n for n in ("past_key_values", "cache") if n in inspect.signature(type(model).forward).parameters]
    return f"{' or '.join(taken)} in, {name} out, {type(cache).__name__}"


def stepwise(model: Any) -> Cell:
    """Compare the logits of steps with the cache with those of one forward pass."""
    whole = _cached(model, TARGET).logits
    name, cache, steps = "past_key_values", None, []
    for i in range(TARGET.shape[1]):
        output = _cached(model, TARGET[:, i : i + 1], **({} if cache is None else {name: cache}))
        name, cache = _cache_of(output)
        steps.append(output.logits)
    return difference(torch.cat(steps, 1), whole)


def reordered(model: Any) -> Cell:
    """Swap the rows of the cache, and compare the next step with the swapped rows of a forward pass."""
    name, cache = _cache_of(_cached(model, TARGET[:, :-1]))
    swap = torch.tensor([1, 0])
    cache.reorder_cache(swap)
    with torch.no_grad():
        given = {"encoder_outputs": model.encoder(SOURCE[swap], attention_mask=MASK[swap]), name: cache}
        output = model(attention_mask=MASK[swap], decoder_input_ids=TARGET[swap][:, -1:], use_cache=True, **given)
    return difference(output.logits[:, -1], _cached(model, TARGET).logits[swap][:, -1])


def cropped(model: Any, length: int) -> Cell:
    """Crop the cache of five tokens to two, and compare the next step with that of a forward pass."""
    name, cache = _cache_of(_cached(model, TARGET))
    cache.crop(length)
    output = _cached(model, TARGET[:, 2:3], **{name: cache})
    return difference(output.logits[:, -1], _cached(model, TARGET[:, :3]).logits[:, -1])


def static_cache(member: str, folder: Path) -> Cell:
    """Compare the scores of `generate` with a static and a dynamic cache."""
    static = {"cache_implementation": "static", "disable_compile": True}
    return difference(*(_scores(load(member, folder), attention_mask=MASK, **chosen) for chosen in (static, {})))


def against_eager(member: str, folder: Path, implementation: str) -> Cell:
    """Compare the logits of a padded batch with those of eager attention."""
    logits = []
    for name in (implementation, "eager"):
        model = load(member, folder, attn_implementation=name)
        assert model.config._attn_implementation == name
        logits.append(_cached(model, TARGET).logits)
    return difference(*logits)


@torch.no_grad()
def looks_ahead(model: Any, mode: str) -> Cell:
    """Tell whether the first logit depends on later labels under sdpa."""
    model.train(mode == "training")
    labels = TARGET[:, 1:].contiguous()
    others = labels.clone()
    others[:, 0] = 40  # the second input of the decoder
    first, second = (model(input_ids=SOURCE, attention_mask=MASK, labels=t).logits for t in (labels, others))
    return difference(first[:, 0], second[:, 0]) > CLOSE


def kept_head(model: Any, call: Callable[[Any], object]) -> Cell:
    """Tell whether a head of its own survives tie_weights() or resize_token_embeddings to the same size."""
    head = model.lm_head.weight.detach().clone()
    call(model)
    return torch.equal(model.lm_head.weight.detach(), head)


def default_dtype(member: str, folder: Path) -> Cell:
    """Return the dtype of a bfloat16 checkpoint that is loaded without a dtype."""
    half = write_checkpoint(member, folder.with_name(folder.name + "-bfloat16"), dtype=torch.bfloat16)
    return str(load(member, half).dtype).removeprefix("torch.")


def without_start(member: str, folder: Path, call: str) -> Cell:
    """Tell what happens if config.json names no decoder_start_token_id."""
    changed = write_checkpoint(member, folder.with_name(f"{folder.name}-no-start"), decoder_start_token_id=None)
    model = load(member, changed)
    with torch.no_grad():
        if call == "labels":
            return bool(model(input_ids=SOURCE, labels=TARGET[:, 1:].contiguous()).loss.isfinite())
        return f"starts with {model.generate(SOURCE, attention_mask=MASK, max_new_tokens=2)[0, 0].item()}"


def lines_of_loading(member: str, folder: Path) -> Cell:
    """Return what from_pretrained logs, from level WARNING."""
    lines = BufferingHandler(capacity=1000)
    lines.setLevel(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(lines)
    try:
        load(member, folder)
    finally:
        logger.removeHandler(lines)
    return " / ".join(shortened(line.getMessage()) for line in lines.buffer) or "nothing"


Measure = Callable[[str, Path], Cell]


def loaded(measure: Callable[..., Cell], *arguments: Any, **options: Any) -> Measure:
    """Return a measure that loads a model, with these options, and measures it with these arguments."""
    return lambda member, folder: measure(load(member, folder, **options), *arguments)


WORDS = SIZES["vocab_size"]
ALL, OWN_HEAD, LATER = tuple(FAMILY), ("T5 1.1", "mT5", "umT5"), ("mT5", "umT5")
ROWS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "fresh head tied": (lambda member, folder: is_tied(fresh(member)), ALL),
    "loaded head tied": (loaded(is_tied), ALL),
    "scale before the head": (loaded(output_scale), ALL),
    "tie_weights keeps the head": (loaded(kept_head, lambda model: model.tie_weights()), OWN_HEAD),
    "resize keeps the head": (loaded(kept_head, lambda model: model.resize_token_embeddings(WORDS)), OWN_HEAD),
    "generate masks padding": (loaded(masks_unasked), ALL),
    "cache": (loaded(cache_name), LATER),
    "cached steps, eager": (loaded(stepwise, attn_implementation="eager"), LATER),
    "cached steps, sdpa": (loaded(stepwise, attn_implementation="sdpa"), LATER),
    "reorder": (loaded(reordered), LATER),
    "crop(2)": (loaded(cropped, 2), LATER),
    "crop(-3)": (loaded(cropped, -3), LATER),
    "static cache": (static_cache, LATER),
    "default attention": (loaded(lambda model: model.config._attn_implementation), LATER),
    "sdpa against eager": (partial(against_eager, implementation="sdpa"), LATER),
    "flash_attention_2": (partial(against_eager, implementation="flash_attention_2"), LATER),
    "flex_attention": (partial(against_eager, implementation="flex_attention"), LATER),
    "looks ahead in evaluation": (loaded(looks_ahead, "evaluation", attn_implementation="sdpa"), LATER),
    "looks ahead in training": (loaded(looks_ahead, "training", attn_implementation="sdpa"), LATER),
    "default dtype": (default_dtype, LATER),
    "loss without decoder_start_token_id": (partial(without_start, call="labels"), OWN_HEAD),
    "generate without decoder_start_token_id": (partial(without_start, call="generate"), OWN_HEAD),
    "logged by from_pretrained": (lines_of_loading, ALL),
}


def main() -> None:
    """Run the command."""
    transformers.logging.disable_progress_bar()
    cells: dict[str, dict[str, Cell]] = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {m: write_checkpoint(m, Path(root) / m.replace(" ", "-").replace(".", "-")) for m in FAMILY}
        for row, (measure, members) in ROWS.items():
            cells[row] = {m: measured(partial(measure, m, folders[m])) for m in members}
    name = f"t5_versions.{version('transformers')}"
    write(name, ["transformers", "torch", "tokenizers", "huggingface_hub"], cells)


if __name__ == "__main__":
    main()
