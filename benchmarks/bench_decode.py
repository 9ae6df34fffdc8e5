"""generate on a frozen T5-base: without prefixes, with MOP, and with MOP by concatenated keys and values.

Beam search, 8 dialogues x 4 beams of 64 tokens, 8 summary tokens each: the encoder once, then 8 steps on 32 rows. In a
mixed batch the 5 scenarios take turns, so that every row needs a prefix of its own. Concatenation copies the keys and
values of every layer, those of the source too, at every step; it is what a prefix in the cache saves and what
prefix_attention.split_attention does without.
"""

import mop_t5
import pytest
import torch
from mop_t5.attachment import attention as prefix_attention

from benchmarks.bench_training_step import SCENARIOS, SMALL_MOP, TINY

GROUP = "generate, frozen T5-base, 8 x 4 beams, 64 tokens -> 8"


@pytest.fixture(scope="module")
def backbone(full_size):
    return mop_t5.build_backbone("t5-base", **({} if full_size else TINY))


@pytest.fixture
def search(backbone, full_size):
    g = torch.Generator().manual_seed(0)
    source, beams, tokens = (64, 4, 8) if full_size else (6, 2, 3)
    return {
        "input_ids": torch.randint(2, backbone.config.vocab_size, (8, source), generator=g),
        "num_beams": beams,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
    }


def test_without_prefixes(backbone, search, timed):
    timed(lambda: backbone.generate(**search), GROUP, "without prefixes", kind="form")


@pytest.mark.parametrize("way", ["as it is", "concatenated"])
@pytest.mark.parametrize("batch", ["one scenario", "mixed"])
def test_with_mop(way, batch, backbone, search, full_size, timed, monkeypatch):
    torch.manual_seed(0)
    model = mop_t5.attach(backbone, "mop", scenarios=SCENARIOS, **({} if full_size else SMALL_MOP))
    search["scenario_ids"] = torch.arange(8) % len(SCENARIOS) if batch == "mixed" else 0
    try:
        expected = model.generate(**search)
        if way == "concatenated":
            monkeypatch.setattr(prefix_attention, "_LONG_QUERY", 1)
        assert torch.equal(model.generate(**search), expected)
        name = f"MOP, {batch}" + (", keys and values concatenated" if way == "concatenated" else "")
        timed(lambda: model.generate(**search), GROUP, name, kind="ours" if way == "as it is" else "form")
    finally:
        mop_t5.detach(backbone)
