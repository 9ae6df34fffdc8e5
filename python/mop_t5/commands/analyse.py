"""mop-t5 analyse lengths: what the MOP paper analyses beside its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mop_t5.analysis.prefix_lengths import Lengths, LengthSweep
from mop_t5.commands.table import Shared
from mop_t5.evaluation import present, show
from mop_t5.evaluation.figures import say_written
from mop_t5.experiments.suite import SuiteConfig


def analyse_lengths(
    training: Shared,
    suite: Annotated[SuiteConfig, "group_rates"],
    tried: Lengths,
    dry_run: bool = False,
) -> None:
    """Train and score systems with one prefix length after the other, MOP and prefix-tuning if none are named.

    The same command goes on where it was interrupted. Writes OUTPUT/lengths.md, .csv, .png and .svg; until all is
    finished, what there is after each run to OUTPUT/lengths-so-far.*.

      mop-t5 analyse lengths --corpus DIR --backbone DIR --output runs/lengths --dry_run
      mop-t5 analyse lengths --corpus DIR --backbone DIR --output runs/lengths --lengths '[10, 20, 40, 80]' \\
          --systems '[MOP, prefix-tuning, HyperPrefix]' --seeds '[0, 1, 2]' --steps 20000 --evaluate_every 1000

    Args:
        dry_run: only print what would be done.
    """
    sweep, folder = LengthSweep(suite, training, tried.lengths), Path(suite.output)
    show(sweep.rows.overview())
    if dry_run:
        return

    def write(name: str) -> None:
        present([sweep.table()], name, folder)
        say_written(sweep.plot(folder / name))

    def remove_so_far() -> None:
        for path in folder.glob("lengths-so-far.*"):
            path.unlink()

    def write_so_far() -> None:
        remove_so_far()  # else each would be kept beside the next
        if not all(planned.finished for planned in sweep.rows.plan()):
            write("lengths-so-far")

    sweep.rows.run(write_so_far)
    write("lengths")
    remove_so_far()
