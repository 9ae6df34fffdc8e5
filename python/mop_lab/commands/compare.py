"""mop-t5 compare"""

from __future__ import annotations

from typing import Annotated

from mop_t5.evaluation import present, show

from mop_lab.commands.table import Shared
from mop_lab.suites.compared_systems import Grid
from mop_lab.suites.method_comparison import Comparison
from mop_lab.suites.suite import SuiteConfig


def compare(training: Shared, suite: Annotated[SuiteConfig, "group_rates"], grid: Grid, dry_run: bool = False) -> None:
    """Tune one frozen backbone by every method with equal steps, and say which is better, by how much, and how surely.

    Rows if --systems names no others: the frozen backbone, every method of the registry, and the floors. With --rates
    each system has the best one of the same grid. Each system and seed is a run folder in OUTPUT/runs, and each trial
    of the grid one in OUTPUT/rates. The same command goes on where it was interrupted; what is finished is shown after
    each system. Two processes can share an OUTPUT if their --systems differ. Writes OUTPUT/comparison.md, rates.md,
    scenarios.md, and the same as .csv.

      mop-t5 compare --corpus DIR --backbone DIR --output runs/all --steps 200 --seeds '[0, 1, 2]' --dry_run
      mop-t5 compare --corpus DIR --backbone DIR --output runs/all --steps 200 --seeds '[0, 1, 2]' \\
          --rates '[3e-4, 3e-3, 3e-2, 0.3]' --rate_steps 100

    Args:
        dry_run: only print what would be done.
    """
    comparison = Comparison(suite, training, grid)
    show(comparison.overview())
    if dry_run:
        return
    comparison.score_floors()
    finished = []
    for label in comparison.labels:
        comparison.run(label)
        finished.append(label)
        show(comparison.compared(finished))
    for name, table in comparison.tables().items():
        present([table], name, suite.output)
