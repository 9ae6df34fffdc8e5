"""mop-t5 compare."""

from typing import Annotated

from mop_t5.evaluation import present, show

from mop_lab.commands.table import Shared
from mop_lab.suites.compared_systems import CompareConfig
from mop_lab.suites.method_comparison import MethodComparison
from mop_lab.suites.suite import baseline_scores
from mop_lab.suites.suite_config import SuiteConfig


def compare(
    training: Shared, suite: Annotated[SuiteConfig, "group_rates"], grid: CompareConfig, dry_run: bool = False
) -> None:
    r"""Tune one frozen backbone by every method with equal steps, and compare the methods with confidence intervals.

    Rows if --systems is not given: the frozen backbone, every method of the registry, and the baselines. With --rates
    each system has its best rate of the same grid. Each system and seed is a run folder in OUTPUT/runs, and each trial
    of the grid is one in OUTPUT/rates. The same command resumes an interrupted comparison. The finished systems are
    shown after each system. Two processes can share an OUTPUT if their --systems differ. Writes OUTPUT/comparison.md,
    rates.md, scenarios.md, and the same as .csv.

      mop-t5 compare --corpus DIR --backbone DIR --output runs/all --steps 200 --seeds '[0, 1, 2]' --dry_run
      mop-t5 compare --corpus DIR --backbone DIR --output runs/all --steps 200 --seeds '[0, 1, 2]' \
          --rates '[3e-4, 3e-3, 3e-2, 0.3]' --rate_steps 100

    Args:
        training: how to train.
        suite: the systems, and how to score them.
        grid: the choice of the rates, and the reference.
        dry_run: only print what would be done.
    """
    comparison = MethodComparison(suite, training, grid)
    show(comparison.overview())
    if dry_run:
        return
    baseline_scores(suite)  # for the report and for plots
    finished = []
    for label in comparison.systems:
        comparison.run(label)
        finished.append(label)
        show(comparison.compared(finished))
    for name, table in comparison.tables().items():
        present([table], name, suite.output)
