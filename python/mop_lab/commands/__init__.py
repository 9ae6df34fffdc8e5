"""The commands of `mop-t5` that belong to the laboratory. `mop-t5` finds them by an entry point in pyproject.toml."""

from pathlib import Path

from mop_t5.cli.commands import read_commands

COMMANDS = read_commands(Path(__file__).with_name("commands.json"))
