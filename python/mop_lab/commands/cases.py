"""mop-t5 analyse values | cases: the values of dialogues that the summaries of finished runs keep, omit and invent."""

import json

from mop_t5.cli import Words
from mop_t5.data import read_split
from mop_t5.evaluation import Values, present, write_texts
from mop_t5.files import check_writable
from rich.console import Console

from mop_lab.analysis.cases import case_of, most_different, to_markdown, to_row, to_text
from mop_lab.analysis.comparability import common_rows
from mop_lab.analysis.value_table import training_corpus, value_table
from mop_lab.finished_runs import finished_systems


def analyse_values(runs: Words, output: str, corpus: str | None = None, split: str = "test") -> None:
    """Count the names, prices, ratings and other numbers that summaries keep and invent, beside their ROUGE.

    ROUGE hardly notices a wrong amount. A value counts if the reference and its dialogue both contain it. Baselines
    (the first user turn, a random and the nearest training reference) are rows of the table. Writes values.md and .csv.

      mop-t5 analyse values runs/tables --output tables
      mop-t5 analyse values runs/mop runs/prefix --corpus DIR --split valid --output tables

    Args:
        runs: output folders of `mop-t5 table 2` or another suite, or folders of evaluated runs.
        output: folder for the files.
        corpus: corpus folder. The default is the corpus of the runs. Its training references tell values from wording.
        split: the scored split, "train", "valid" or "test".
    """
    systems = finished_systems(runs, split)
    check_writable(output)
    present([value_table(systems, corpus or training_corpus(systems))], "values", output)


def analyse_cases(
    runs: Words,
    output: str,
    corpus: str | None = None,
    split: str = "test",
    ids: list[str] | None = None,
    count: int = 5,
    seed: int = 0,
) -> None:
    """Show dialogues with the summary of each system, and the values that it omits or invents.

    Without ids, the rows are shown whose summaries differ most in the number of values that they keep, of each scenario
    in turn. Writes cases.md, and cases.jsonl for programs.

      mop-t5 analyse cases runs/tables --output tables
      mop-t5 analyse cases runs/mop runs/prefix --ids '[test-12, test-40]' --seed 1 --output tables

    Args:
        runs: output folders of `mop-t5 table 2` or another suite, or folders of evaluated runs.
        output: folder for the files.
        corpus: corpus folder. The default is the corpus of the runs. Its training references tell values from wording.
        split: the scored split, "train", "valid" or "test".
        ids: ids of the rows to show, in this order.
        count: number of rows that are chosen without ids.
        seed: seed of the training whose summaries are shown. A system without it shows its first seed.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    systems = finished_systems(runs, split)
    check_writable(output)
    values = Values(read_split(corpus or training_corpus(systems), "train"))
    shown = [(system, seed if seed in system.seeds else next(iter(system.seeds))) for system in systems]
    rows, texts = common_rows(shown)
    chosen = _of_ids([row.id for row in rows], ids) if ids else range(len(rows))
    cases = [case_of(rows[i], {said: given[i] for said, given in texts.items()}, values) for i in chosen]
    if not ids:
        cases = most_different(cases, count)
    Console().print(to_text(cases), soft_wrap=True)
    lines = [json.dumps(to_row(case), ensure_ascii=False) + "\n" for case in cases]
    write_texts(output, {"cases.md": to_markdown(cases), "cases.jsonl": "".join(lines)})


def _of_ids(known: list[str | None], ids: list[str]) -> list[int]:
    """Return the places of rows.

    Args:
        known: The id of each row.
        ids: The ids of the rows that are wanted, in the order of the result.

    Raises:
        ValueError: No row has one of the ids, or several rows have it.
    """
    if several := [one for one in ids if known.count(one) > 1]:
        raise ValueError(f"ids names {', '.join(several)}, which several rows have. Give the rows ids of their own.")
    if missing := [one for one in ids if one not in known]:
        raise ValueError(
            f"ids names {', '.join(missing)}, which no evaluated row has. There are {len(set(known))} ids, such as "
            f"{', '.join(map(str, known[:3]))}."
        )
    return [known.index(one) for one in ids]
