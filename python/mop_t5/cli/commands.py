"""The commands of `mop-t5`: the library's own, and the commands that other packages add by entry points.

A package adds commands by an entry point of the group `mop_t5.commands`. It names a dict of Command, as in mop_lab.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import NamedTuple

GROUP = "mop_t5.commands"


class Command(NamedTuple):
    """A command, or a name with commands under it.

    Attributes:
        help: Lines of the help, each the flags and their purpose. The purpose may be empty.
        function: "package.module.function". It is imported when the command is called. Its parameters are the flags
            and the keys of a configuration file, its docstring is the help. A parameter that is a dataclass stands for
            all the fields of that class. None for a name with commands under it.
        commands: The commands under the name.
        purpose: The first line of the help of a name with commands under it.
    """

    help: tuple[tuple[str, str], ...]
    function: str | None = None
    commands: Mapping[str, Command] = {}
    purpose: str = ""


CORPUS = Command(
    (("convert | crosswoz | floors", "corpora of CSV, TSV and JSON files; baselines"),),
    purpose="Make corpora of published files, and score the baselines of a corpus.",
    commands={
        "convert": Command(
            (
                ("--tasks examples/tasks/glue.yaml --input raw --output DIR", "tasks, with their metrics"),
                (
                    "--input calls.csv --scenario '{business}' --dialogue '{text}' --summary '{note}' --output DIR",
                    "",
                ),
                ("--tasks dialogsum --input raw --output DIR", "also samsum, csds, lccc, crosswoz"),
            ),
            "mop_t5.cli.corpus.corpus_convert",
        ),
        "crosswoz": Command(
            (("--clone DIR --output DIR", "Chinese dialogues of five scenarios"),),
            "mop_t5.cli.crosswoz.corpus_crosswoz",
        ),
        "floors": Command((("--corpus DIR", "scores computed without a model"),), "mop_t5.cli.baselines.corpus_floors"),
    },
)
PROMPTS = Command(
    (("add | list | remove", "source prompts, for ATTEMPT and SPoT"),),
    purpose="A library of source prompts, which ATTEMPT mixes and SPoT starts from.",
    commands={
        "add": Command(
            (("--library DIR --name NAME --adapter DIR", "copy the prompt of a trained prompt_tuning"),),
            "mop_t5.cli.prompts.prompts_add",
        ),
        "list": Command((("--library DIR", "the prompts of a library"),), "mop_t5.cli.prompts.prompts_list"),
        "remove": Command((("--library DIR --name NAME", "remove a prompt"),), "mop_t5.cli.prompts.prompts_remove"),
    },
)
_OWN = {
    "train": Command((("--corpus DIR --backbone DIR --method mop --output RUN", ""),), "mop_t5.cli.train.train"),
    "evaluate": Command((("--run RUN", "scores per scenario, beside baselines"),), "mop_t5.cli.evaluate.evaluate"),
    "generate": Command((("--run RUN --input FILE", "summaries of new dialogues"),), "mop_t5.cli.generate.generate"),
    "corpus": CORPUS,
    "convert": Command(
        (("--checkpoint DIR --output DIR", "a backbone of the published T5-pegasus"),), "mop_t5.cli.convert.convert"
    ),
    "export": Command(
        (("--run RUN --output DIR", "generated prefixes, without their generator"),), "mop_t5.cli.export.export"
    ),
    "squeeze": Command(
        (("--run RUN --scenario NAME --output DIR", "a plain T5 of a mixture, for one scenario"),),
        "mop_t5.cli.squeeze.squeeze",
    ),
    "prompts": PROMPTS,
}


def all_commands() -> dict[str, Command]:
    """Return the commands of the library, then the commands of other packages, by name."""
    found = dict(_OWN)
    for point in entry_points(group=GROUP):
        found |= point.load()
    return found
