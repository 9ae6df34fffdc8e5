"""The README shows the measured table early, and every room, page and command. test_docs.py runs its blocks."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

ROOMS = sorted(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "python").glob("*/*/__init__.py"))


def test_the_measured_table_stands_above_the_fold():
    lines = README.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("| MOP generator"))
    assert table < 20
    assert len("".join(lines[:table])) < 1500


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_page_is_linked(page):
    assert f"](docs/{page.name})" in README


@pytest.mark.parametrize("room", ROOMS)
def test_the_room_is_named(room):
    assert f"`{room}/`" in README


def test_every_command_is_shown():
    commands = pytest.importorskip("mop_t5.cli.commands")
    assert [name for name in commands.all_commands() if f"mop-t5 {name}" not in README] == []
