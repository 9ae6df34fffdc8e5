"""mop-t5 table 1 | 2 | 3 | 4: the tables of the MOP paper, with the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.data import read_split
from mop_t5.evaluation import Table, present, show
from mop_t5.evaluation.corpus_statistics import corpus_table
from mop_t5.training import TrainingConfig

from mop_lab.suites import comparison, paper
from mop_lab.suites.sizes import table_4 as parameter_table
from mop_lab.suites.suite import Suite, SuiteConfig
from mop_lab.suites.systems import all_systems, choose, table_2_systems, table_3_systems

# without the fields that differ between the systems or runs of a table
Shared = Annotated[TrainingConfig, "learning_rate", "group_rates", "seed"]


def table_1(corpus: str, tokenizer: str | None = None, output: str | None = None) -> None:
    """Table 1: the size of each scenario of a corpus, and how long its dialogues and summaries are.

      mop-t5 table 1 --corpus DIR
      mop-t5 table 1 --corpus DIR --tokenizer models/t5-pegasus-base --output tables

    Args:
        corpus: folder with train, valid and test splits; one that is missing is left out.
        tokenizer: folder of a backbone or its name on the model hub: lengths in its tokens, too.
        output: folder for table-1.md and table-1.csv; only printed if not given.
    """
    table = corpus_table(corpus, None if tokenizer is None else load_tokenizer(tokenizer))
    present([paper.beside_corpus(table)], "table-1", output)


def table_2(training: Shared, suite: SuiteConfig, dry_run: bool = False) -> None:
    """Table 2: train every system with every seed, score them, and compare them with MTL-vanilla and hypernetworks.

    Each system and seed is a run folder in OUTPUT/runs. The same command goes on where it was interrupted: a finished
    run is not done again, and one that has a checkpoint (--save_every or --evaluate_every) goes on from it. A run in
    OUTPUT that was made with another configuration is an error. Writes OUTPUT/table-2.md and table-2.csv.

      mop-t5 table 2 --corpus DIR --backbone DIR --output runs/tables --dry_run
      mop-t5 table 2 --corpus DIR --backbone DIR --output runs/tables --steps 20000 --evaluate_every 1000 --patience 5
      mop-t5 table 2 --corpus DIR --backbone DIR --output runs/tables --seeds '[0, 1, 2]' \\
          --systems '[MTL-vanilla, HyperFormer++, HyperPrefix, MOP]' --learning_rates '{MOP: 1e-3}'

    Args:
        dry_run: only print what would be done.
    """
    _run(Suite(suite, training, table_2_systems()), 2, comparison.table_2, dry_run)


def table_3(training: Shared, suite: SuiteConfig, dry_run: bool = False) -> None:
    """Table 3: train MOP and what is left of it without its parts, and compare.

    Runs and resumes as `mop-t5 table 2` does. Writes OUTPUT/table-3.md and table-3.csv.

      mop-t5 table 3 --corpus DIR --backbone DIR --output runs/tables --steps 20000 --evaluate_every 1000 --patience 5
      mop-t5 table 3 --corpus DIR --backbone DIR --output runs/tables --systems '[MOP, MOP w/o LoRL]' --dry_run

    Args:
        dry_run: only print what would be done.
    """
    _run(Suite(suite, training, table_3_systems()), 3, comparison.table_3, dry_run)


def table_4(
    backbone: str = "t5-pegasus-base",
    scenarios: int = 5,
    systems: list[str] | None = None,
    options: dict[str, Any] | None = None,
    output: str | None = None,
) -> None:
    """Table 4: the parameters of every system, all and trained, on one backbone. No weights are needed.

      mop-t5 table 4
      mop-t5 table 4 --backbone t5-base --scenarios 20 --options.prefix_length 80 --output tables

    Args:
        backbone: a known architecture such as "t5-pegasus-base" or "mt5-base", or a backbone's folder.
        scenarios: how many scenarios there are.
        systems: labels of the systems; all of them if not given.
        options: fields of the methods, such as {"prefix_length": 80}, given to every system whose method has them.
        output: folder for table-4.md and table-4.csv; only printed if not given.
    """
    present([parameter_table(backbone, choose(systems, list(all_systems()), options), scenarios)], "table-4", output)


def _run(suite: Suite, number: int, compare: Callable[..., list[Table]], dry_run: bool) -> None:
    runs = suite.plan()
    show(suite.overview(runs))
    if dry_run:
        return
    suite.run(runs)
    config, training = suite.config, suite.training
    rows = len(read_split(config.corpus, config.split))
    what = f"{suite.scorer} on {rows} {config.split} rows, {config.num_beams} beam(s)"
    rates = ", ".join(f"{system.label} {system.learning_rate:g}" for system in suite.systems)
    notes = [
        f"Ours: {training.steps} steps of {training.batch_size * training.accumulation} rows, seeds "
        f"{', '.join(map(str, config.seeds))}. Learning rates: {rates}."
    ]
    present(compare(what, suite.results(runs), suite.floors(), notes), f"table-{number}", config.output)
