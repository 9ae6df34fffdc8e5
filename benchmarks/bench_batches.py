"""Padding and rows per second of a training, for each way to make batches.

The training is that of `mop-t5 train` with its default settings: MOP on a frozen T5-small with random weights. The
corpus is the folder that MOP_BENCHMARK_CORPUS names, such as the output of `mop-t5 corpus crosswoz`. The tokenizer is
trained on the same rows. The ways take turns, with another seed in each round.

A time is per row drawn, and the rows per second are its inverse. The padding is the share of padding among the tokens
of one epoch. MOP_BENCHMARK_STEPS is the number of steps of a round. Batches by length differ in their cost, so take
enough steps: 150 are one epoch of CrossWOZ.
"""

import itertools
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

import mop_t5
import pytest
import torch
from mop_t5 import data
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.training import TrainingConfig, train

from benchmarks.support import results
from benchmarks.support.t5 import SMALL_MOP, TINY

CORPUS = os.environ.get("MOP_BENCHMARK_CORPUS")
STEPS = int(os.environ.get("MOP_BENCHMARK_STEPS", "50"))
ROUNDS = 3
GROUP = "mop-t5 train, MOP on T5-small: per row drawn"


def padding(batches: Sequence[Sequence[int]], lengths: Sequence[tuple[int, int]]) -> float:
    """Return the share of padding among the tokens of some batches."""
    real = sum(sum(lengths[row]) for batch in batches for row in batch)
    return 1 - real / sum(padded_size(batch, lengths) for batch in batches)


def padded_size(batch: Sequence[int], lengths: Sequence[tuple[int, int]]) -> int:
    """Return the tokens of a batch with its padding."""
    return len(batch) * sum(map(max, zip(*(lengths[row] for row in batch))))


def test_ways_to_make_batches(full_size, record, tmp_path):
    if full_size and CORPUS is None:
        pytest.skip("needs a corpus: MOP_BENCHMARK_CORPUS=FOLDER")
    rows = (data.read_corpus(CORPUS or "") if full_size else data.synthetic_corpus(2, train=200))["train"]
    steps, rounds, pieces = (STEPS, ROUNDS, 3000) if full_size else (1, 1, 600)
    shape: dict[str, Any] = {} if full_size else TINY
    tokenizer = train_tokenizer([text for row in rows for text in (row.dialogue, row.summary)], pieces)
    backbone = mop_t5.build_backbone("t5-small", **shape | {"vocab_size": len(tokenizer)})
    scenarios = data.scenarios_of(rows)
    ids = data.scenario_ids_of(rows, scenarios)
    lengths = data.EncodedExamples(rows, tokenizer, scenarios).lengths

    def batches(by_length: bool = False, **settings: Any) -> list[list[int]]:
        if "tokens_per_batch" not in settings:
            settings["batch_size"] = TrainingConfig().batch_size
        sorts = by_length or "tokens_per_batch" in settings
        return list(data.TemperatureBatchSampler(ids, **settings, lengths=lengths if sorts else None))

    drawn, longest = batches(), max(map(sum, lengths))
    budget = max(longest, sum(padded_size(batch, lengths) for batch in drawn) // len(drawn))  # as large as the others
    ways: dict[str, dict[str, Any]] = {
        "as drawn": {},
        "by length": {"by_length": True},
        f"by length, {budget} tokens": {"tokens_per_batch": budget},
        "mixed, as drawn": {"batching": "mixed"},
        "mixed, by length": {"batching": "mixed", "by_length": True},
    }
    shares = {name: padding(batches(**settings), lengths) for name, settings in ways.items()}
    assert shares["by length"] < shares["as drawn"]
    assert shares["mixed, by length"] < shares["mixed, as drawn"]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for seed, (name, settings) in itertools.product(range(rounds), ways.items()):
        torch.manual_seed(0)
        model = mop_t5.attach(backbone, "mop", scenarios=scenarios, **({} if full_size else SMALL_MOP))
        config = TrainingConfig(steps=steps, seed=seed, **settings)
        trained = train(model, tokenizer, rows, config, output=tmp_path / f"{name}-{seed}", progress=False)
        mop_t5.detach(model)
        assert all(math.isfinite(loss) for _, loss in trained.losses)
        times[name].append(1e3 * trained.seconds_per_step * steps / (trained.history[-1]["epoch"] * len(rows)))
    for name in ways:
        about = {"padding": shares[name], "rows_a_second": 1e3 / statistics.median(times[name])}
        shown = f"{name}: {about['padding']:.0%} padding, {about['rows_a_second']:.1f} rows a second"
        kind = "form" if "as drawn" in name else "ours"
        record["rows"].append(results.row_of(GROUP, shown, kind, times[name], flops=None, bytes=None, **about))
