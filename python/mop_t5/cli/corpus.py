"""Make corpora and score their baselines: `mop-t5 corpus convert | crosswoz | floors`."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mop_t5.checks import check_choice
from mop_t5.data import TASKS, of_scenarios, read_split, read_tasks, tasks_yaml
from mop_t5.data.corpus import write_corpus
from mop_t5.data.crosswoz import PARTS, crosswoz_corpus, read_clone
from mop_t5.data.task_configs import TaskConfig
from mop_t5.data.task_corpus import chosen_tasks, convert_tasks, task_of_templates
from mop_t5.evaluation import Rouge, Scorer, Table, baseline_texts, present, score_table, show
from mop_t5.evaluation.corpus_statistics import corpus_table
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
    r"""Make a corpus of CSV, TSV, JSON, Parquet or Arrow files, by configurations of tasks or by the names of columns.

    Files are called train, valid (validation, dev, val) and test, with .csv, .tsv, .json or .jsonl, gzip by suffix, or
    .parquet or .arrow. A folder of save_to_disk of the library datasets counts as a file.
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
            folder of the files, one file, or a dataset on the hub, hub:OWNER/NAME or hub:OWNER/NAME@REVISION:CONFIG.
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
    templates = {"scenario": scenario, "dialogue": dialogue, "summary": summary, "turn": turn, "join": join}
    if tasks is None:
        configs, known = task_of_templates(templates, references, split, limit), None
        if names or columns:
            raise ValueError("names and columns need --tasks.")
    else:
        if any(given is not None for given in (*templates.values(), references)) or split != "given" or limit:
            raise ValueError(
                "scenario, dialogue, summary, turn, join, references, split and limit cannot be used with --tasks, "
                "which sets them. Remove these flags."
            )
        configs, known = chosen_tasks(tasks, names, role, columns)
    splits, sizes, skipped = convert_tasks(configs, input, known, header, seed, skip_bad_rows)
    files = {}
    if scored := {name: config.scored for name, config in configs.items() if config.scored is not None}:
        files[TASKS] = tasks_yaml(scored)
    flags, why = training_flags(configs, sizes, role)
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
        values: list[Any] = [training.get(name) for training in trainings.values()]
        if name in ("max_source", "max_target") and None not in values:
            flags[name] = max(values)
        elif any(value != values[0] for value in values):
            return {}, f"There is no {TRAINING}: the tasks differ in {name}. Convert those that agree together."
        else:
            flags[name] = values[0]
    defaults = TrainingConfig(**flags)  # raises an error for a wrong field
    if defaults.tokens_per_batch is not None:
        return {}, f"There is no {TRAINING}: tokens_per_batch does not say how many steps an epoch has. Set batch_size."
    passes = sum(sizes[name] * config.epochs[role] for name, config in configs.items())
    return {"steps": math.ceil(passes / (defaults.batch_size * defaults.accumulation)), **flags}, None


def corpus_crosswoz(clone: str, output: str, parts: list[str] | None = None, overwrite: bool = False) -> None:
    """Make a corpus of a clone of thu-coai/CrossWOZ: pieces of one scenario, with the goal of the user as summary.

    Pieces of one dialogue are in one split, 8:1:1 by a hash of its id. docs/corpora.md describes how dialogues are cut,
    and which pieces are dropped.

      git clone https://github.com/thu-coai/CrossWOZ
      mop-t5 corpus crosswoz --clone CrossWOZ --output corpora/crosswoz
      mop-t5 corpus crosswoz --clone CrossWOZ --parts '[val, test]' --output corpora/crosswoz-small

    Args:
        clone: folder of the clone, or the folder in it that has train.json.zip, val.json.zip and test.json.zip, packed
            or not.
        output: folder for the corpus. It must be new or empty.
        parts: the files to take, out of "train", "val" and "test"; all if not given. Each gives rows of all splits.
        overwrite: replace a corpus in the output folder.
    """
    splits, dropped = crosswoz_corpus(read_clone(clone, PARTS if parts is None else parts))
    if not splits["train"]:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.most_common())
        raise ValueError(f"{clone} gives no training rows. Dropped pieces: {reasons or 'none'}. Take more parts.")
    splits = {split: rows for split, rows in splits.items() if rows}  # a few dialogues may be in train alone
    write_corpus(output, splits, overwrite=overwrite)
    show(corpus_table(output))
    for reason, count in dropped.most_common():
        print(f"Dropped {count}: {reason}.")
    print(f"Written to {output}: {', '.join(f'{split}.jsonl' for split in splits)}.")


def corpus_floors(
    rouge: Rouge,
    corpus: str,
    split: str = "test",
    scenarios: list[str] | None = None,
    output: str | None = None,
) -> None:
    """Score the baselines, which need no model: the first user turn, a random and the nearest training reference.

    A model that scores below the nearest reference has learnt the form of the summaries and not their content.

      mop-t5 corpus floors --corpus DIR
      mop-t5 corpus floors --corpus DIR --split valid --unit jieba --output tables

    Args:
        rouge: how ROUGE is counted.
        corpus: folder with train.jsonl and the split to score.
        split: "test" or "valid".
        scenarios: score the rows of these scenarios only, such as '[taxi]'; all if not given.
        output: folder for floors.md and floors.csv; only printed if not given.
    """
    check_choice("split", split, ("test", "valid"))
    scorer = Scorer(rouge, read_tasks(corpus))
    train, rows = (of_scenarios(read_split(corpus, name), scenarios) for name in ("train", split))
    texts = baseline_texts(rows, train)
    scores = {name: scorer(rows, given) for name, given in texts.items()}
    title = f"{scorer} on {len(rows)} {split} rows, without a model"
    present([score_table(title, scores, notes=scorer.remarks(rows, texts))], "floors", output)
