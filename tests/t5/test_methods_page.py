"""docs/methods.md names every method, every row of the tables, and sizes that are true."""

from pathlib import Path

import mop_t5
import pytest
from mop_lab.suites.systems import SYSTEMS
from mop_t5.methods import method_names

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 7}


def test_every_method_is_a_row():
    assert sorted(ROWS) == sorted(method_names())


@pytest.mark.parametrize("name", [name for name in method_names() if name != "mop"])
def test_the_row_names_the_systems_and_their_sizes(name):
    for label, fields in SYSTEMS[name].fields.items():
        assert label in ROWS[name]
        model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
        mop_t5.attach(model, name, scenarios=list("abcde"), **fields)
        assert f"{mop_t5.count_parameters(model).trained:,}" in ROWS[name], label
