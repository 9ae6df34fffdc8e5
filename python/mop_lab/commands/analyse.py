"""mop-t5 analyse prefixes | variance | lengths | share: what the MOP paper analyses beside its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mop_t5.attachment.places import ATTENTIONS
from mop_t5.checks import check_choice
from mop_t5.cli import Words
from mop_t5.evaluation import present, show
from mop_t5.files import check_writable
from mop_t5.plots.figures import say_written

from mop_lab.analysis.comparability import not_comparable
from mop_lab.analysis.prefix_lengths import Lengths, LengthSweep
from mop_lab.analysis.prefix_plot import plot_prefixes
from mop_lab.analysis.prefixes import KINDS, read_prefixes, spread_tables
from mop_lab.analysis.share import baselines_in, measured, plot_share, scale_table
from mop_lab.analysis.variance import plot_variance, variance_table, varied
from mop_lab.commands.table import Shared
from mop_lab.finished_runs import finished_systems
from mop_lab.suites.suite import SuiteConfig


def analyse_prefixes(runs: Words, output: str, attention: str = "decoder_self", backbone: str | None = None) -> None:
    """Show the prefixes that methods generate: a PCA of their single vectors, by layer and scenario, and their spread.

    One PCA is fitted to all runs together, one for keys and one for values. Writes OUTPUT/prefixes-keys.png and .svg,
    prefixes-values.png and .svg, prefixes.md and .csv, and of each layer and scenario prefixes-parts.md and .csv.

      mop-t5 analyse prefixes runs/mop runs/prefix --output analyses
      mop-t5 analyse prefixes --output analyses \\
          runs/tables/runs/mop/seed-0 runs/tables/runs/prefix-tuning/seed-0

    Args:
        runs: run folders of mop, prefix_tuning, hyper_prefix or an export of them.
        output: folder for what is written.
        attention: "decoder_self", for which MOP has its experts, "encoder_self" or "cross".
        backbone: folder of the backbone, if it has moved since the runs.
    """
    check_choice("attention", attention, ATTENTIONS)
    check_writable(output)
    prefixes, folder = read_prefixes(runs, attention, backbone), Path(output)
    every, parts = spread_tables(prefixes, attention)
    present([every], "prefixes", folder)
    present([parts], "prefixes-parts", folder)
    for kind in KINDS:
        title = f"Generated {kind}, {attention} attention, in one PCA of all runs"
        say_written(plot_prefixes(folder / f"prefixes-{kind}", prefixes, kind, title))


def analyse_variance(runs: Words, output: str, split: str = "test") -> None:
    """Show how much the scores of finished systems vary over seeds: the variance of F1 by metric and scenario.

    Writes OUTPUT/variance.md, .csv, .png and .svg.

      mop-t5 analyse variance runs/tables --output analyses
      mop-t5 analyse variance runs/mop runs/prefix --output analyses

    Args:
        runs: output folders of suites such as `mop-t5 table 2`, or of `mop-t5 train --seeds`, evaluated.
        output: folder for what is written.
        split: the split that was scored, "test" or "valid".
    """
    check_writable(output)
    finished = finished_systems(runs, split)
    systems, left_out = varied(finished)
    title = f"Variance over seeds, {split} split"
    present([variance_table(title, systems, left_out, not_comparable(finished))], "variance", output)
    say_written(plot_variance(Path(output) / "variance", systems, title))


def analyse_share(runs: Words, output: str, split: str = "test") -> None:
    """Set the scores of finished systems against how large a share of the backbone they train.

    Writes OUTPUT/share.md, .csv, .png and .svg, with the baselines that suites have scored.

      mop-t5 analyse share runs/tables --output analyses

    Args:
        runs: output folders of suites such as `mop-t5 table 2`, or runs of `mop-t5 train`, evaluated.
        output: folder for what is written.
        split: the split that was scored, "test" or "valid".
    """
    check_writable(output)
    systems, baselines = [one for folder in runs for one in measured(folder, split)], baselines_in(runs, split)
    title = f"Score against the share of parameters that is trained, {split} split"
    remarks = not_comparable(finished_systems(runs, split))
    present([scale_table(title, systems, baselines, remarks)], "share", output)
    say_written(plot_share(Path(output) / "share", systems, baselines, title))


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
