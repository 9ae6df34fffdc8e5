"""Make corpora of published files: `mop-t5 corpus convert`."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mop_t5.data import TASKS, Example, tasks_yaml
from mop_t5.data.conversion import Converter
from mop_t5.data.corpus import write_corpus
from mop_t5.data.task_configs import (
    COLUMNS,
    PUBLISHED,
    ROLES,
    TaskConfig,
    published_tasks,
    read_columns,
    read_task_configs,
)
from mop_t5.evaluation import Table, show
from mop_t5.training import TrainingConfig

TRAINING = "train.yaml"
_SHOWN = 20  # left-out rows whose reasons are printed


def corpus_convert(
    input: str,
    output: str,
    tasks: str | None = None,
    names: list[str] | None = None,
    role: str = "target",
    columns: str | None = None,
    scenario: str | None = None,
    dialogue: str | None = None,
    summary: str | None = None,
    split: str = "given",
    limit: int = 0,
    turn: str | None = None,
    join: str | None = None,
    references: list[str] | None = None,
    header: list[str] | None = None,
    seed: int = 42,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
) -> None:
    r"""Make a corpus of CSV, TSV, JSON or JSON-lines files, by configurations of tasks or by the names of columns.

    Files are called train, valid (validation, dev, val) and test, with .csv, .tsv, .json or .jsonl, gzip by suffix.
    Beside the splits, OUTPUT gets tasks.yaml (the metrics of the tasks) and train.yaml (flags of `mop-t5 train`). The
    names of these published corpora of dialogues are known: samsum, dialogsum, csds, lccc and crosswoz.

      mop-t5 corpus convert --tasks dialogsum --input dialogsum/DialogSum_Data --output corpora/dialogsum
      mop-t5 corpus convert --tasks examples/tasks/glue.yaml --input raw --output corpora/glue
      mop-t5 corpus convert --tasks examples/tasks --names '[rte]' --input raw/rte --output corpora/rte
      mop-t5 corpus convert --input calls.csv --scenario '{business}' --dialogue '{text}' --summary '{note}' \
          --split 8:1:1 --output corpora/calls
      mop-t5 corpus convert --input calls.jsonl --scenario taxi --dialogue '{turns}' --turn '{speaker}: {text}' \
          --summary '{note}' --split 8:1:1 --output corpora/calls

    Args:
        input: folder with one folder of files per task, with the task's name. For one task, or without tasks: the
            folder of the files, or one file.
        output: folder for the corpus. It must be new or empty.
        tasks: YAML file of task configurations, a folder of such files, or the name of a published corpus: "samsum",
            "dialogsum", "csds", "lccc" or "crosswoz". docs/corpora.md describes these.
        names: the tasks to convert into one corpus; all tasks with the role if not given.
        role: "target" or "source", which decides the number of epochs in train.yaml.
        columns: YAML file of the names of columns; columns.yaml beside the tasks if not given.
        scenario: without tasks, the scenario of a row: a text with columns in braces, '{business}', or just 'taxi'.
        dialogue: without tasks, the text to read, such as '{question} {context}'.
        summary: without tasks, the text to write, such as '{answer}'.
        split: without tasks, how splits are made: "given", unchanged; "halve", half of the validation rows become
            the test rows; "hold_out", 1,000 training rows become validation, and validation becomes test; "8:1:1".
        limit: without tasks, the number of training rows that are drawn at random and kept. 0 keeps all.
        turn: without tasks, the form of a turn, if a column of --dialogue holds a list of turns:
            '{speaker}: {text}' for turns that are objects, '{0}: {1}' for pairs, '{}' for turns that are texts. Each
            turn gets a line.
        join: without tasks, the text between the elements of a list. A list in --summary is then one summary.
            Otherwise the first element is learnt, and all elements are right.
        references: without tasks, columns of further right summaries. A row need not have them.
        header: names of the columns of CSV and TSV files that do not name them in the first line.
        seed: seed of the rows that are drawn.
        skip_bad_rows: leave out rows that cannot be read or converted, and print their number and the reasons.
        overwrite: replace a corpus in the output folder.
    """
    shape = {"scenario": scenario, "dialogue": dialogue, "summary": summary, "turn": turn, "join": join}
    candidates: dict[str, dict[str, list[str]]] = {}
    if tasks is None:
        configs = _task_of_flags(shape, references, split, limit)
        if names or columns:
            raise ValueError("names and columns go with --tasks, and there are none.")
    else:
        if any(one is not None for one in (*shape.values(), references)) or split != "given" or limit:
            raise ValueError(
                "scenario, dialogue, summary, turn, join, references, split and limit are for use without --tasks: a "
                "task says these."
            )
        known, beside = _known(tasks)
        configs = _chosen(known, names, role)
        candidates = read_columns(columns or beside) if columns or beside.is_file() else {}
    corpora: dict[str, dict[str, list[Example]]] = {}
    skipped: list[tuple[str, str]] = []
    for name, config in configs.items():
        converter = Converter(config, name, candidates.get(name, {}), header, skip_bad_rows)
        folder = Path(input) / name
        corpora[name] = converter.splits(folder if tasks and folder.exists() else _alone(input, configs, folder), seed)
        skipped += converter.skipped
        if tasks is None and converter.unseen:
            raise ValueError(f"references names {', '.join(sorted(converter.unseen))}, which no row has.")
    splits: dict[str, list[Example]] = {}
    for corpus in corpora.values():
        for name, examples in corpus.items():
            splits.setdefault(name, []).extend(examples)
    files = {}
    scored = {name: config.scored for name, config in configs.items() if config.scored is not None}
    if scored:
        files[TASKS] = tasks_yaml(scored)
    flags, why = training_flags(configs, {name: len(corpus["train"]) for name, corpus in corpora.items()}, role)
    if flags:
        files[TRAINING] = yaml.safe_dump(flags, sort_keys=False)
    write_corpus(output, splits, files=files, overwrite=overwrite)
    counts = {split: Counter(example.scenario for example in examples) for split, examples in splits.items()}
    scenarios = dict.fromkeys(name for count in counts.values() for name in count)
    rows = [[name, *(count[name] for count in counts.values())] for name in scenarios]
    show(Table(f"Rows of {output}", ["scenario", *splits], rows, dict.fromkeys(splits, ",d"), [why] if why else []))
    if skipped:
        print(f"Left out {len(skipped)} rows that could not be converted, the first of them {skipped[0][0]}.")
        for _, reason in skipped[:_SHOWN]:
            print(f"  {reason}")
    print(f"Written to {output}: {', '.join((*(f'{split}.jsonl' for split in splits), *files))}.")
    if flags:
        given = f"--config {Path(output) / TRAINING} --corpus {output}"
        print(f"Next: mop-t5 train {given} --backbone DIR --method METHOD --learning_rate RATE --output DIR")


def _task_of_flags(
    shape: Mapping[str, str | None], references: list[str] | None, split: str, limit: int
) -> dict[str, TaskConfig]:
    """Return the task that the flags describe, by the text of its scenario."""
    texts = {name: shape[name] for name in ("scenario", "dialogue", "summary")}
    if missing := [name for name, text in texts.items() if text is None]:
        raise ValueError(f"without --tasks give --scenario, --dialogue and --summary; missing: {', '.join(missing)}.")
    if empty := [name for name, text in texts.items() if text == ""]:
        raise ValueError(f"{', '.join(empty)} must not be empty. Give a text, with columns in braces.")
    for name, text in shape.items():
        _warn_of_escapes(name, text)
    return {
        str(shape["scenario"]): TaskConfig(
            str(shape["dialogue"]),
            str(shape["summary"]),
            split=split,
            limit=limit,
            turn=shape["turn"],
            join=shape["join"],
            references=references or [],
        )
    }


def training_flags(
    configs: Mapping[str, TaskConfig], sizes: Mapping[str, int], role: str
) -> tuple[dict[str, Any], str | None]:
    """Return the flags of `mop-t5 train` for several tasks together.

    The lengths are the largest of all tasks. Every task is trained for its own number of epochs, so the number of steps
    is the sum over tasks of rows times epochs, divided by the rows per step.

    Args:
        configs: The tasks.
        sizes: task -> training rows.
        role: "target" or "source".

    Returns:
        The flags, and the reason if there are none.
    """
    trainings = {name: config.training for name, config in configs.items() if config.epochs}
    if len(trainings) < len(configs):
        return {}, None
    flags: dict[str, Any] = {}
    for name in dict.fromkeys(name for training in trainings.values() for name in training):
        values = [training.get(name) for training in trainings.values()]
        if name in ("max_source", "max_target") and None not in values:
            flags[name] = max(value for value in values if value is not None)
        elif any(value != values[0] for value in values):
            return {}, f"There is no {TRAINING}: the tasks differ in {name}. Convert those that agree together."
        else:
            flags[name] = values[0]
    defaults = TrainingConfig(**flags)  # raises an error for a wrong field
    passes = sum(sizes[name] * config.epochs[role] for name, config in configs.items())
    return {"steps": math.ceil(passes / (defaults.batch_size * defaults.accumulation)), **flags}, None


def _known(tasks: str) -> tuple[dict[str, TaskConfig], Path]:
    """Return the configurations that --tasks names, and the path of the file with the names of their columns."""
    published = published_tasks()
    if tasks in published:
        return {tasks: published[tasks]}, PUBLISHED / COLUMNS
    path = Path(tasks)
    if not path.exists():
        raise FileNotFoundError(
            f"no file or folder at {tasks}. Give a YAML file of tasks, or one of {', '.join(published)}."
        )
    return read_task_configs(path), (path if path.is_dir() else path.parent) / COLUMNS


def _chosen(configs: Mapping[str, TaskConfig], names: list[str] | None, role: str) -> dict[str, TaskConfig]:
    if role not in ROLES:
        raise ValueError(f"role must be {' or '.join(ROLES)}, got {role!r}.")
    having = [name for name, config in configs.items() if role in config.epochs or not config.epochs]
    unknown = sorted(set(names or ()) - set(having))
    if unknown:
        raise ValueError(f"names has {', '.join(unknown)}; the {role} tasks are {', '.join(having)}.")
    if (names is not None and len(set(names)) != len(names)) or not (names or having):
        raise ValueError(f"names must be different tasks, at least one; got {names}. The {role} tasks are {having}.")
    return {name: configs[name] for name in names or having}


def _warn_of_escapes(name: str, text: str | None) -> None:
    """Warn if a template has a line break or a tab in the notation of programs, which stays two characters."""
    if text is not None and ("\\n" in text or "\\t" in text):
        warnings.warn(
            f"{name} has a backslash, which stays as it is in every text: {text!r}. For a line break or a tab write "
            f"--{name} $'...' in bash.",
            stacklevel=4,
        )


def _alone(input: str, configs: Mapping[str, TaskConfig], folder: Path) -> Path:
    """Return the input itself, if there is only one task."""
    if len(configs) > 1:
        raise FileNotFoundError(f"no folder at {folder}. Name tasks that are there with --names.")
    return Path(input)
