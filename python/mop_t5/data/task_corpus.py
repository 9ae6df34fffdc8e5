"""Make one corpus of the files of several tasks, or of one task that templates describe."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from mop_t5.checks import check_choice, check_names
from mop_t5.data.conversion import Converter
from mop_t5.data.examples import Example
from mop_t5.data.task_configs import COLUMNS, PUBLISHED, ROLES, TaskConfig, read_columns, read_task_configs


def convert_tasks(
    configs: Mapping[str, TaskConfig],
    source: str,
    columns: Mapping[str, Mapping[str, Sequence[str]]] | None,
    header: Sequence[str] | None,
    seed: int,
    skip: bool,
) -> tuple[dict[str, list[Example]], dict[str, int], list[tuple[str, str]]]:
    """Convert the files of tasks to the splits of one corpus.

    Args:
        configs: The tasks.
        source: Folder with one folder of files per task. For a single task also what `dataset_files` takes.
        columns: task -> field -> possible names of its column. None for a task that templates describe.
        header: Names of the columns, for files without a line of names.
        seed: Seed of the rows that are drawn.
        skip: Leave out rows that cannot be converted.

    Returns:
        The rows of all tasks by split, the number of training rows by task, and the place and reason of each row that
        was left out.

    Raises:
        FileNotFoundError: A task has no files.
        TypeError, ValueError: A row cannot be converted, or a split is empty.
    """
    splits: dict[str, list[Example]] = {}
    sizes: dict[str, int] = {}
    skipped: list[tuple[str, str]] = []
    for name, config in configs.items():
        converter = Converter(config, name, (columns or {}).get(name, {}), header, skip)
        folder = Path(source) / name
        has_folder = columns is not None and folder.exists()
        if len(configs) > 1 and not has_folder:
            raise FileNotFoundError(f"no folder at {folder}. Name tasks that are there with --names.")
        rows = converter.splits(folder if has_folder else source, seed)
        for split, examples in rows.items():
            splits.setdefault(split, []).extend(examples)
        sizes[name] = len(rows["train"])
        skipped.extend(converter.skipped)
        if columns is None and converter.unseen:
            raise ValueError(f"references names {', '.join(sorted(converter.unseen))}, which no row has.")
    return splits, sizes, skipped


def chosen_tasks(
    tasks: str, names: Sequence[str] | None, role: str, columns: str | None
) -> tuple[dict[str, TaskConfig], dict[str, dict[str, list[str]]]]:
    """Return the configurations of tasks, and the names of their columns.

    Args:
        tasks: YAML file of task configurations, folder of such files, or name of a published corpus.
        names: The tasks to take. None for all tasks with the role.
        role: "target" or "source".
        columns: YAML file of the names of columns. None for columns.yaml beside the tasks.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError, ValueError: A file is wrong, or `names` or `role` is unknown.
    """
    published, path = read_task_configs(PUBLISHED), Path(tasks)
    if tasks in published:
        known, beside = {tasks: published[tasks]}, PUBLISHED / COLUMNS
    elif path.exists():
        known, beside = read_task_configs(path), (path if path.is_dir() else path.parent) / COLUMNS
    else:
        raise FileNotFoundError(
            f"no file or folder at {tasks}. Give a YAML file of tasks, or one of {', '.join(published)}."
        )
    check_choice("role", role, ROLES)
    having = [name for name, config in known.items() if role in config.epochs or not config.epochs]
    chosen = check_names("names", names) if names else having
    if unknown := sorted(set(chosen) - set(having)):
        raise ValueError(f"names has {', '.join(unknown)}; the {role} tasks are {', '.join(having)}.")
    if not chosen:
        raise ValueError(f"names must be at least one task; got none. The {role} tasks are {having}.")
    candidates = read_columns(columns or beside) if columns or beside.is_file() else {}
    return {name: known[name] for name in chosen}, candidates


def task_of_templates(
    templates: Mapping[str, str | None], references: list[str] | None, split: str, limit: int
) -> dict[str, TaskConfig]:
    """Return the task that templates describe, by the template of its scenario.

    Args:
        templates: Templates by name: "scenario", "dialogue", "summary", and possibly "turn" and "join".
        references: See TaskConfig.
        split: See TaskConfig.
        limit: See TaskConfig.

    Raises:
        ValueError: A template is missing, empty or wrong.
    """
    texts = {name: templates[name] for name in ("scenario", "dialogue", "summary")}
    if missing := [name for name, text in texts.items() if text is None]:
        raise ValueError(f"without --tasks give --scenario, --dialogue and --summary; missing: {', '.join(missing)}.")
    if empty := [name for name, text in texts.items() if text == ""]:
        raise ValueError(f"{', '.join(empty)} must not be empty. Give a text, with columns in braces.")
    for name, text in templates.items():
        if text is not None and ("\\n" in text or "\\t" in text):  # a line break in the notation of programs
            warnings.warn(
                f"{name} has a backslash, which stays as it is in every text: {text!r}. For a line break or a tab "
                f"write --{name} $'...' in bash.",
                stacklevel=3,
            )
    scenario, dialogue, summary = map(str, texts.values())
    turn, join = templates["turn"], templates["join"]
    config = TaskConfig(dialogue, summary, turn=turn, join=join, references=references or [], split=split, limit=limit)
    return {scenario: config}
