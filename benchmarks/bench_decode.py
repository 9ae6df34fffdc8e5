"""generate on a frozen T5-base: without prefixes, with MOP, and with MOP by concatenated keys and values.

A beam search of 8 dialogues x 4 beams of 64 tokens makes 8 summary tokens each: the encoder runs once, then 8 steps
run on 32 rows. In a mixed batch the 5 scenarios take turns, so that every row needs its own prefix. Concatenation
copies the keys and values of every layer at every step, also the keys and values of the source. A prefix in the cache
saves these copies, and prefixed_attention needs no copies.
"""

import pytest
import torch
from mop_t5.attachment import attention

from benchmarks.support.t5 import SCENARIOS

GROUP = "generate, frozen T5-base, 8 x 4 beams, 64 tokens -> 8"


def test_without_prefixes(backbone, search, timed):
    timed(lambda: backbone.generate(**search), GROUP, "without prefixes", kind="form")


@pytest.mark.parametrize("way", ["as it is", "concatenated"])
@pytest.mark.parametrize("batch", ["one scenario", "mixed"])
def test_with_mop(way, batch, attach, mop_fields, search, timed, monkeypatch):
    model = attach("mop", **mop_fields)
    search["scenario_ids"] = torch.arange(8) % len(SCENARIOS) if batch == "mixed" else 0
    expected = model.generate(**search)
    if way == "concatenated":
        monkeypatch.setattr(attention, "_LONG_QUERY", 1)
    assert torch.equal(model.generate(**search), expected)
    name = f"MOP, {batch}" + (", keys and values concatenated" if way == "concatenated" else "")
    timed(lambda: model.generate(**search), GROUP, name, kind="ours" if way == "as it is" else "form")
