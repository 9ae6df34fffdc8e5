"""The command `mop-t5`: train, evaluate, generate, params, table, prompts, demo.

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

from mop_t5.commands.attempt import (
    attempt_ablations,
    attempt_attention,
    attempt_few_shot,
    attempt_memory,
    attempt_modularity,
    attempt_prior,
    attempt_scale,
    attempt_sources,
)
from mop_t5.commands.convert import convert
from mop_t5.commands.corpus import corpus_convert
from mop_t5.commands.crosswoz import corpus_crosswoz
from mop_t5.commands.demo import demo
from mop_t5.commands.evaluate import evaluate
from mop_t5.commands.export import export
from mop_t5.commands.floors import corpus_floors
from mop_t5.commands.generate import generate
from mop_t5.commands.moe import moe_adapt, moe_compare, moe_disable, moe_routes
from mop_t5.commands.params import params
from mop_t5.commands.prompts import prompts_add, prompts_list, prompts_remove
from mop_t5.commands.squeeze import squeeze
from mop_t5.commands.table import table_1, table_2, table_3, table_4
from mop_t5.commands.task_vectors import task_vectors
from mop_t5.commands.train import train
from mop_t5.methods import get, names

_INTRO = """Tune a frozen T5 on dialogues of several scenarios, and see what that is worth.

  mop-t5 demo                       all of it in a few minutes on a CPU, without pretrained weights
  mop-t5 params                     how many parameters each method trains
  mop-t5 table 2                    all methods on one corpus, beside the numbers of the MOP paper
  mop-t5 train --corpus DIR --backbone DIR --method mop --output DIR
  mop-t5 prompts list --library DIR source prompts for ATTEMPT and SPoT
  mop-t5 attempt sources ...        the experiments of the ATTEMPT paper
  mop-t5 moe compare ...            the experiments on task-level mixtures of experts
  mop-t5 corpus convert ...         corpora of CSV, TSV and JSON files, with metrics of their tasks
  mop-t5 evaluate --run DIR         scores per scenario, beside floors
  mop-t5 generate --run DIR --input FILE
  mop-t5 export --run DIR --output DIR   generated prefixes, without what generates them
  mop-t5 convert --checkpoint DIR --output DIR   a backbone of the published T5-pegasus

A corpus is a folder with train, valid and test `.jsonl` or `.jsonl.gz`, one object a line:
  {"scenario": "taxi", "dialogue": "...", "summary": "..."}
Flags can stand in a YAML or JSON file under the same names: mop-t5 train --config train.yaml
`mop-t5 COMMAND --help` explains the flags of a command."""

# a command, or the commands under a name
COMMANDS: dict[str, Callable | dict[str, Callable]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "params": params,
    "table": {"1": table_1, "2": table_2, "3": table_3, "4": table_4},
    "prompts": {"add": prompts_add, "list": prompts_list, "remove": prompts_remove},
    "task-vectors": task_vectors,
    "moe": {"compare": moe_compare, "adapt": moe_adapt, "routes": moe_routes, "disable": moe_disable},
    "export": export,
    "squeeze": squeeze,
    "convert": convert,
    "attempt": {
        "sources": attempt_sources,
        "prior": attempt_prior,
        "ablations": attempt_ablations,
        "modularity": attempt_modularity,
        "few_shot": attempt_few_shot,
        "attention": attempt_attention,
        "scale": attempt_scale,
        "memory": attempt_memory,
    },
    "corpus": {"convert": corpus_convert, "crosswoz": corpus_crosswoz, "floors": corpus_floors},
    "demo": demo,
}
_NESTED_HELP = {
    "table": """The tables of the MOP paper, with the paper's numbers beside ours.

  mop-t5 table 1 --corpus DIR                                     what a corpus holds
  mop-t5 table 2 --corpus DIR --backbone DIR --output DIR         every system, trained and scored
  mop-t5 table 3 --corpus DIR --backbone DIR --output DIR         MOP without its parts, trained and scored
  mop-t5 table 4                                                  parameters of every system""",
    "corpus": """Corpora made of the files that others publish, and what a corpus gives for free.

  mop-t5 corpus convert --tasks examples/tasks/glue.yaml --input raw --output DIR    tasks, with their metrics
  mop-t5 corpus convert --input calls.csv --scenario '{business}' --dialogue '{text}' --summary '{note}' --output DIR
  mop-t5 corpus crosswoz --clone DIR --output DIR                                    Chinese dialogues of five scenarios
  mop-t5 corpus floors --corpus DIR                                                  scores that no model made
""",
    "prompts": """A library of source prompts, which ATTEMPT mixes and SPoT starts from.

  mop-t5 prompts add --library DIR --name NAME --adapter DIR      copy one out of a trained prompt_tuning
  mop-t5 prompts list --library DIR                               what a library holds
  mop-t5 prompts remove --library DIR --name NAME                 take one out
""",
    "moe": """The experiments on task-level mixtures of experts. What trains goes on where it was interrupted.

  mop-t5 moe compare --corpus DIR --backbone DIR --output OUT             what matters in training; which router
  mop-t5 moe adapt --corpus DIR --backbone DIR --experts DIR --output OUT unseen tasks, as they are and few-shot
  mop-t5 moe routes --run RUN --features FILE                             who takes which expert, and why
  mop-t5 moe disable --run RUN --features FILE                            what is lost without some experts""",
    "attempt": """The experiments of the ATTEMPT paper. What trains goes on where it was interrupted; --dry_run shows what is left.

  mop-t5 attempt sources --corpus DIR --backbone DIR --library LIB --output OUT      source prompts, into a library
  mop-t5 attempt prior --corpus DIR --backbone DIR --library LIB --output OUT        the attention that tasks start from
  mop-t5 attempt ablations --corpus DIR --backbone DIR --library LIB --output OUT    PT, SPoT, ATTEMPT and its parts
  mop-t5 attempt modularity --corpus DIR --backbone DIR --library LIB --output OUT   source prompts one by one
  mop-t5 attempt few_shot --corpus DIR --backbone DIR --library LIB --output OUT     4, 16 and 32 rows a task
  mop-t5 attempt attention --run DIR                                                 which prompts a task attends to
  mop-t5 attempt scale --suites '[OUT]' --output DIR                                 scores against parameters
  mop-t5 attempt memory --backbones '[t5-small, t5-base]' --batch_sizes '[8, 2]'     peak memory of training""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parsed = _parser().parse_args(arguments)
    path, command, given = [parsed.command], COMMANDS[parsed.command], parsed[parsed.command]
    if isinstance(command, dict):
        path, command, given = [*path, given.command], command[given.command], given[given.command]
    given = given.as_dict()
    given.pop("config", None)
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    try:
        if processes > 1 and command is not train:
            raise RuntimeError(f"only train runs in several processes, and this is one of {processes}.")
        command(**_gather(command, given))
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        if os.environ.get("MOP_T5_DEBUG"):
            raise
        if rank == 0:
            print(f"mop-t5 {' '.join(path)}: {error}", file=sys.stderr)
        return 1
    return 0


class _Parser(ArgumentParser):
    """Flags are written in full: `--seed` is not short for `--seeds`."""

    def __init__(self, **keywords):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **keywords)


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The examples in a description keep their lines."""


def _parser() -> _Parser:
    parser = _Parser(prog="mop-t5", description=_INTRO)
    _add(parser, COMMANDS)
    return parser


def _add(parser: _Parser, commands: dict) -> None:
    subcommands = parser.add_subcommands(dest="command", title="commands", metavar="COMMAND")
    for name, command in commands.items():
        nested = isinstance(command, dict)
        one = _Parser(description=_NESTED_HELP[name]) if nested else _command_parser(command)
        subcommands.add_subcommand(name, one, help=one.description.split("\n")[0])
        if nested:  # jsonargparse wants the outer one first
            _add(one, command)


def _command_parser(command: Callable) -> _Parser:
    description = inspect.getdoc(command).split("\nArgs:")[0].rstrip()
    parser = _Parser(description=description)
    parser.add_argument("--config", action="config", help="YAML or JSON file with any of the settings below.")
    dataclasses = _dataclasses(command)
    parser.add_function_arguments(command, as_group=False, skip=set(dataclasses))
    for dataclass, left_out in dataclasses.values():
        parser.add_class_arguments(dataclass, as_group=False, skip=set(left_out))
    if any(action.dest == "options" for action in parser._actions):
        parser.epilog = _method_fields()
    for action in parser._actions:
        if isinstance(action.default, bool):
            action.nargs, action.const = "?", True  # `--overwrite` alone means `--overwrite true`
    return parser


def _method_fields() -> str:
    """The documentation of every method's fields, for the help of commands with options."""
    return "\n\n".join(inspect.getdoc(get(name).Config) for name in names())


def _dataclasses(command: Callable) -> dict[str, tuple[type, tuple[str, ...]]]:
    """The parameters of a command whose fields are flags of their own, but for those that Annotated names: parameter ->
    (dataclass, fields without a flag)."""
    hints = get_type_hints(command, include_extras=True)
    found = {name: (getattr(h, "__origin__", h), getattr(h, "__metadata__", ())) for name, h in hints.items()}
    return {name: (hint, left_out) for name, (hint, left_out) in found.items() if is_dataclass(hint)}


def _gather(command: Callable, given: dict) -> dict:
    """Flags that are fields of a dataclass, made into that dataclass."""
    made = {}
    for name, (dataclass, left_out) in _dataclasses(command).items():
        flags = [field.name for field in fields(dataclass) if field.name not in left_out]
        made[name] = dataclass(**{flag: given.pop(flag) for flag in flags})
    return made | given


if __name__ == "__main__":
    sys.exit(main())
