"""mop-t5 table 1 | 2 | 3 | 4: the tables of the MOP paper, with the paper's numbers beside ours."""

from typing import Annotated, Any

from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.evaluation import present
from mop_t5.evaluation.corpus_statistics import corpus_table
from mop_t5.training import TrainingConfig

from mop_lab.suites import paper, sizes
from mop_lab.suites.paper_tables import PaperTables
from mop_lab.suites.suite import baseline_scores, carry_out, suite_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import all_systems, choose, table_2_systems, table_3_systems

# without the fields that differ between the systems or runs of a table
Shared = Annotated[TrainingConfig, "learning_rate", "group_rates", "seed"]
# the tables of scores: the labels of their systems, and the tables of the results
_SCORED = {2: (table_2_systems, PaperTables.table_2), 3: (table_3_systems, PaperTables.table_3)}


def table_1(corpus: str, tokenizer: str | None = None, output: str | None = None) -> None:
    """Table 1: the size of each scenario of a corpus, and the mean lengths of its dialogues and summaries.

      mop-t5 table 1 --corpus DIR
      mop-t5 table 1 --corpus DIR --tokenizer models/t5-pegasus-base --output tables

    Args:
        corpus: folder with train, valid and test splits. A missing split is left out.
        tokenizer: folder of a backbone or its name on the model hub. Adds the lengths in its tokens.
        output: folder for table-1.md and table-1.csv. The default only prints.
    """
    table = corpus_table(corpus, None if tokenizer is None else load_tokenizer(tokenizer))
    present([paper.beside_corpus(table)], "table-1", output)


def table_2(training: Shared, suite: SuiteConfig, dry_run: bool = False) -> None:
    r"""Table 2: train every system with every seed, score them, and compare them with MTL-vanilla and hypernetworks.

    Each system and seed is a run folder in OUTPUT/runs. The same command resumes an interrupted table: a finished run
    is not repeated, and a run with a checkpoint (--save_every or --evaluate_every) resumes from it. A run in OUTPUT
    that was made with another configuration is an error. Writes OUTPUT/table-2.md and table-2.csv.

      mop-t5 table 2 --corpus DIR --backbone DIR --output runs/tables --dry_run
      mop-t5 table 2 --corpus DIR --backbone DIR --output runs/tables --steps 20000 --evaluate_every 1000 --patience 5
      mop-t5 table 2 --corpus DIR --backbone DIR --output runs/tables --seeds '[0, 1, 2]' \
          --systems '[MTL-vanilla, HyperFormer++, HyperPrefix, MOP]' --learning_rates '{MOP: 1e-3}'

    Args:
        training: how to train.
        suite: the systems, and how to score them.
        dry_run: only print what would be done.
    """
    _run(2, suite, training, dry_run)


def table_3(training: Shared, suite: SuiteConfig, dry_run: bool = False) -> None:
    """Table 3: train MOP, and MOP without some of its parts, and compare.

    Runs and resumes as `mop-t5 table 2` does. Writes OUTPUT/table-3.md and table-3.csv.

      mop-t5 table 3 --corpus DIR --backbone DIR --output runs/tables --steps 20000 --evaluate_every 1000 --patience 5
      mop-t5 table 3 --corpus DIR --backbone DIR --output runs/tables --systems '[MOP, MOP w/o LoRL]' --dry_run

    Args:
        training: how to train.
        suite: the systems, and how to score them.
        dry_run: only print what would be done.
    """
    _run(3, suite, training, dry_run)


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
        backbone: a known architecture such as "t5-pegasus-base" or "mt5-base", or the folder of a backbone.
        scenarios: number of scenarios.
        systems: labels of the systems. The default is all.
        options: fields of the methods, such as {"prefix_length": 80}, given to every system whose method has them.
        output: folder for table-4.md and table-4.csv. The default only prints.
    """
    present([sizes.table_4(backbone, choose(systems, list(all_systems()), options), scenarios)], "table-4", output)


def _run(number: int, config: SuiteConfig, training: TrainingConfig, dry_run: bool) -> None:
    systems, tables = _SCORED[number]
    suite = suite_of(config, training, systems())
    if carry_out(suite, dry_run):
        steps, rates = suite.how_trained()
        notes = [f"Ours: {steps}, seeds {', '.join(map(str, config.seeds))}. {rates}."]
        results = PaperTables(config.how_scored(), suite.results(), baseline_scores(config), notes)
        present(tables(results), f"table-{number}", config.output)
