"""Measure prefix- and prompt-tuning of one library on a T5: `--library peft`, `adapters` or `mop_t5`.

The measurements use nothing of a library but building, calling, generating, saving and loading. The T5 has random
weights, two layers and eager attention, and the trainable parameters are random too.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables.prefix_libraries import LIBRARIES, Library, backbone
from benchmarks.tables.record import CLOSE, Cell, difference, measured, write

SOURCE = torch.tensor([[5, 6, 7, 8, 9, 10, 1], [11, 12, 13, 14, 15, 16, 1]])
TARGET = torch.tensor([[20, 21, 22, 23, 1], [24, 25, 26, 27, 1]])
GIVEN = {"input_ids": SOURCE, "attention_mask": torch.ones_like(SOURCE)}  # two rows without padding
BATCH = {**GIVEN, "labels": TARGET}
STEPS = 8  # generated tokens


def tuned(library: Library) -> Any:
    """Return a tuned T5 with random trainable parameters, in evaluation mode."""
    model, _ = library.build(backbone())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


@torch.no_grad()
def weights(library: Library, attention: str, *, only_bias: bool = False) -> Tensor:
    """Return the first layer's weights (heads, queries, keys) of the "encoder", "decoder" or "cross" attention.

    With only_bias all queries are zero, so that the scores are the position bias alone.
    """
    model = tuned(library)
    if only_bias:
        for name, parameter in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                parameter.zero_()
    return model(**BATCH, output_attentions=True)[f"{attention}_attentions"][0][0]


def extra_columns(library: Library, attention: str) -> Cell:
    """Return the number of keys beside the tokens' own. A prompt counts, where it is not a query too."""
    return weights(library, attention).shape[-1] - (TARGET if attention == "decoder" else SOURCE).shape[1]


def bias_of_prefix(library: Library, attention: str) -> Cell:
    """Name the position bias of a prefix in a self-attention.

    It is read from the weights of the last query, which sees every key.

    Returns:
        "none": no prefix, "tokens": the rows are queries too, "zero", "before": the bias of tokens before the text,
        "moved": a key at distance d (key minus query) gets the bias of distance d + the prefix's length, or "other".
    """
    found = weights(library, attention, only_bias=True).double()
    queries, keys = found.shape[1], found.shape[2]
    prefix = keys - (SOURCE if attention == "encoder" else TARGET).shape[1]
    if prefix == 0 or queries == keys:
        return "none" if prefix == 0 else "tokens"
    layer = getattr(backbone(), attention).block[0].layer[0].SelfAttention
    with torch.no_grad():
        table = layer.compute_bias(keys, keys)[0].double()  # (heads, queries, keys), as if all keys were tokens
    last = found[:, -1].log()  # bias + a constant per head
    moved = table[:, queries - 1]
    if difference(last - last[:, -1:], moved - moved[:, -1:]) < CLOSE:
        return "moved"
    last = last - last[:, -1:] + table[:, -1, -1:]  # now the key at the query's own place has the bias of distance 0
    if difference(last[:, prefix:], table[:, -1, prefix:]) > CLOSE:
        return "other"
    if last[:, :prefix].abs().max() < CLOSE:
        return "zero"
    return "before" if difference(last[:, :prefix], table[:, -1, :prefix]) < CLOSE else "other"


@torch.no_grad()
def generated(library: Library, **options: Any) -> Any:
    """Return what `generate` gives, with the scores of every step."""
    model = tuned(library)
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_scores": True, **options}
    return model.generate(**GIVEN, return_dict_in_generate=True, **options)


@torch.no_grad()
def logits_of(library: Library, sequences: Tensor) -> Tensor:
    """Return the logits of a forward pass that reads generated ids, for each generated token."""
    return tuned(library)(**GIVEN, decoder_input_ids=sequences[:, :-1]).logits[:, -STEPS:]


def with_and_without_cache(library: Library, **options: Any) -> Cell:
    """Return the largest difference of the scores of all steps with and without the cache, unless the ids differ."""
    found = [generated(library, use_cache=use_cache, **options) for use_cache in (True, False)]
    if not torch.equal(found[0].sequences, found[1].sequences):
        return "other texts"
    return difference(torch.stack(found[0].scores), torch.stack(found[1].scores))


def generate_against_forward(library: Library, use_cache: bool) -> Cell:
    """Compare the scores of greedy `generate` with the logits of a forward pass that reads the generated ids."""
    found = generated(library, use_cache=use_cache)
    return difference(torch.stack(found.scores, 1), logits_of(library, found.sequences))


def steps_that_equal(library: Library) -> Cell:
    """Return how many steps of `generate` without the cache have the scores of a forward pass that reads its ids."""
    found = generated(library, use_cache=False)
    logits = logits_of(library, found.sequences)
    return sum(difference(scores, logits[:, i]) < CLOSE for i, scores in enumerate(found.scores))


def beams_against_scores(library: Library) -> Cell:
    """Compare the score of the best beam with the log-probability of its ids in a forward pass."""
    found = generated(library, num_beams=3, use_cache=True, length_penalty=0.0)
    logits, ids = logits_of(library, found.sequences), found.sequences[:, 1:, None]
    return difference(found.sequences_scores, logits.log_softmax(-1).gather(-1, ids).sum((1, 2)))


def gradients(library: Library, checkpointing: bool = False) -> dict[str, Tensor]:
    """Return the gradients of trainable parameters, as far as they get one."""
    model = tuned(library).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**BATCH).loss.backward()
    trained = ((name, p.grad) for name, p in model.named_parameters() if p.requires_grad)
    return {name: grad for name, grad in trained if grad is not None}


def of_checkpointing(library: Library) -> Cell:
    """Return the largest difference of the gradients with and without activation checkpointing."""
    plain, again = gradients(library), gradients(library, checkpointing=True)
    if plain.keys() != again.keys():
        return "other parameters get a gradient"
    return max(difference(g, again[name]) for name, g in plain.items())


def trained(library: Library) -> Cell:
    """Return the number of trainable numbers with a gradient other than zero."""
    return sum(int(g.count_nonzero()) for g in gradients(library).values())


@torch.no_grad()
def round_trip(library: Library) -> Cell:
    """Return the largest difference of the logits after saving and loading on a fresh backbone."""
    model = tuned(library)
    wanted = model(**BATCH).logits
    with tempfile.TemporaryDirectory() as folder:
        library.save(model, Path(folder) / "saved")
        again = library.load(backbone(), Path(folder) / "saved").eval()
    return difference(again(**BATCH).logits, wanted)


@torch.no_grad()
def padding(library: Library) -> Cell:
    """Return how far the logits of a short row move if the batch pads it."""
    short, target = SOURCE[:1, 3:], TARGET[:1]
    alone = tuned(library)(input_ids=short, attention_mask=torch.ones_like(short), labels=target).logits
    rows = SOURCE.clone()
    rows[0] = torch.nn.functional.pad(short[0], (0, 3))
    mask = torch.ones_like(rows)
    mask[0, -3:] = 0
    return difference(tuned(library)(input_ids=rows, attention_mask=mask, labels=TARGET).logits[:1], alone)


@torch.no_grad()
def effect(library: Library) -> Cell:
    """Tell whether the tuned parts change the logits at all."""
    return difference(tuned(library)(**BATCH).logits, backbone()(**BATCH).logits) > CLOSE


MEASURES: dict[str, Callable[[Library], Cell]] = {
    "columns in the encoder self-attention": partial(extra_columns, attention="encoder"),
    "columns in the decoder self-attention": partial(extra_columns, attention="decoder"),
    "columns in the cross-attention": partial(extra_columns, attention="cross"),
    "bias in the encoder self-attention": partial(bias_of_prefix, attention="encoder"),
    "bias in the decoder self-attention": partial(bias_of_prefix, attention="decoder"),
    "acts": effect,
    "cache": with_and_without_cache,
    "cached generate against forward": partial(generate_against_forward, use_cache=True),
    "uncached generate against forward": partial(generate_against_forward, use_cache=False),
    "uncached steps that equal forward": steps_that_equal,
    "cache with 3 beams": partial(with_and_without_cache, num_beams=3),
    "score of the best beam against forward": beams_against_scores,
    "checkpointing": of_checkpointing,
    "save and load": round_trip,
    "reported parameters": lambda library: library.build(backbone())[1],
    "parameters with a gradient": trained,
    "padding": padding,
}


def column(library: Library) -> dict[str, Cell]:
    """Return all cells of a library, or the one cell that says why it does not build."""
    built = measured(MEASURES["reported parameters"], library)
    if isinstance(built, dict):
        return {"builds": built}
    return {name: measured(measure, library) for name, measure in MEASURES.items()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=list(LIBRARIES), required=True)
    given = parser.parse_args()
    kinds = {kind: LIBRARIES[given.library](kind) for kind in ("prefix", "prompt")}
    columns = {kind: column(library) for kind, library in kinds.items()}
    write(f"prefixes.{given.library}", [kinds["prefix"].package, "torch", "transformers"], columns)


if __name__ == "__main__":
    main()
