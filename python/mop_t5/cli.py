"""The command `mop-t5`: train, evaluate, generate, params, demo.

The flags of a command are made from its function in commands/. An error of the user's is one line on stderr and exit
code 1 (2 for a wrong flag); with MOP_T5_DEBUG=1 it shows where it was raised.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from mop_t5.commands.demo import demo
from mop_t5.commands.evaluate import evaluate
from mop_t5.commands.generate import generate
from mop_t5.commands.params import params
from mop_t5.commands.train import train
from mop_t5.methods import get, names

_INTRO = """Tune a frozen T5 on dialogues of several scenarios, and see what that is worth.

  mop-t5 demo                       all of it in a few minutes on a CPU, without pretrained weights
  mop-t5 params                     how many parameters each method trains
  mop-t5 train --corpus DIR --backbone DIR --method mop --output DIR
  mop-t5 evaluate --run DIR         ROUGE per scenario, beside floors
  mop-t5 generate --run DIR --input FILE

A corpus is a folder with train, valid and test `.jsonl` or `.jsonl.gz`, one object a line:
  {"scenario": "taxi", "dialogue": "...", "summary": "..."}
Flags can stand in a YAML or JSON file under the same names: mop-t5 train --config train.yaml
`mop-t5 COMMAND --help` explains the flags of a command."""

COMMANDS: dict[str, Callable] = {command.__name__: command for command in (train, evaluate, generate, params, demo)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parsed = _parser().parse_args(arguments)
    command, given = COMMANDS[parsed.command], parsed[parsed.command].as_dict()
    given.pop("config", None)
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    try:
        if processes > 1 and parsed.command != "train":
            raise RuntimeError(f"only train runs in several processes, and this is one of {processes}.")
        command(**_gather(command, given))
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        if os.environ.get("MOP_T5_DEBUG"):
            raise
        if rank == 0:
            print(f"mop-t5 {parsed.command}: {error}", file=sys.stderr)
        return 1
    return 0


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The examples in a description keep their lines."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="mop-t5", description=_INTRO, formatter_class=_Help)
    subcommands = parser.add_subcommands(dest="command", title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        description = inspect.getdoc(command).split("\nArgs:")[0].rstrip()
        epilog = _method_fields() if "options" in inspect.signature(command).parameters else None
        one = ArgumentParser(description=description, epilog=epilog, formatter_class=_Help)
        one.add_argument("--config", action="config", help="YAML or JSON file with any of the settings below.")
        dataclasses = _dataclasses(command)
        one.add_function_arguments(command, as_group=False, skip=set(dataclasses))
        for dataclass in dataclasses.values():
            one.add_class_arguments(dataclass, as_group=False)
        for action in one._actions:
            if isinstance(action.default, bool):
                action.nargs, action.const = "?", True  # `--overwrite` alone means `--overwrite true`
        subcommands.add_subcommand(name, one, help=description.split("\n")[0])
    return parser


def _method_fields() -> str:
    """The documentation of every method's fields, for the help of commands with options."""
    return "\n\n".join(inspect.getdoc(get(name).Config) for name in names())


def _dataclasses(command: Callable) -> dict[str, type]:
    """The parameters of a command whose fields are flags of their own."""
    return {name: hint for name, hint in get_type_hints(command).items() if is_dataclass(hint)}


def _gather(command: Callable, given: dict) -> dict:
    """Flags that are fields of a dataclass, made into that dataclass."""
    made = {}
    for name, dataclass in _dataclasses(command).items():
        made[name] = dataclass(**{field.name: given.pop(field.name) for field in fields(dataclass)})
    return made | given


if __name__ == "__main__":
    sys.exit(main())
