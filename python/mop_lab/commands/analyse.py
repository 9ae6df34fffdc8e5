"""mop-t5 analyse prefixes | variance | lengths | share: the analyses of the MOP paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from mop_t5.attachment.additions import ATTENTIONS
from mop_t5.checks import check_choice
from mop_t5.cli import Words
from mop_t5.evaluation import present
from mop_t5.files import check_writable
from mop_t5.plots.figures import say_written

from mop_lab.analysis.comparability import not_comparable
from mop_lab.analysis.prefix_lengths import Lengths, LengthSweep
from mop_lab.analysis.prefix_plot import plot_prefixes
from mop_lab.analysis.prefixes import KINDS, read_prefixes, spread_tables
from mop_lab.analysis.share import baselines_in, measured, plot_share, scale_table
from mop_lab.analysis.variance import plot_variance, variance_table, varied
from mop_lab.commands.table import Shared
from mop_lab.finished_runs import FinishedSystem, finished_systems
from mop_lab.suites.suite import carry_out
from mop_lab.suites.suite_config import SuiteConfig


def analyse_prefixes(runs: Words, output: str, attention: str = "decoder_self", backbone: str | None = None) -> None:
    r"""Show the prefixes that methods generate: a PCA of their single vectors, by layer and scenario, and their spread.

    All runs share one PCA for keys and one for values. Writes OUTPUT/prefixes-keys.png and .svg, prefixes-values.png
    and .svg, prefixes.md and .csv, and prefixes-parts.md and .csv, which have each layer and scenario.

      mop-t5 analyse prefixes runs/mop runs/prefix --output analyses
      mop-t5 analyse prefixes --output analyses \
          runs/tables/runs/mop/seed-0 runs/tables/runs/prefix-tuning/seed-0

    Args:
        runs: run folders of mop, prefix_tuning or hyper_prefix, or their exports.
        output: folder for the files.
        attention: "decoder_self", where MOP has its experts, "encoder_self" or "cross".
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
        runs: output folders of suites such as `mop-t5 table 2`, or evaluated runs of `mop-t5 train --seeds`.
        output: folder for the files.
        split: the scored split, "test" or "valid".
    """
    check_writable(output)
    finished = finished_systems(runs, split)
    systems, left_out = varied(finished)
    title = f"Variance over seeds, {split} split"
    present([variance_table(title, systems, left_out, not_comparable(finished))], "variance", output)
    say_written(plot_variance(Path(output) / "variance", systems, title))


def analyse_share(runs: Words, output: str, split: str = "test") -> None:
    """Set the scores of finished systems against the share of the parameters that they train.

    Writes OUTPUT/share.md, .csv, .png and .svg, with the baselines that suites have scored.

      mop-t5 analyse share runs/tables --output analyses

    Args:
        runs: output folders of suites such as `mop-t5 table 2`, or evaluated runs of `mop-t5 train`.
        output: folder for the files.
        split: the scored split, "test" or "valid".
    """
    title = f"Score against the share of parameters that is trained, {split} split"
    baselines = baselines_in(runs, split)
    systems = present_sizes("share", title, runs, output, split, baselines)
    say_written(plot_share(Path(output) / "share", systems, baselines, title))


def present_sizes(
    name: str,
    title: str,
    folders: Sequence[str],
    output: str,
    split: str,
    baselines: dict[str, float] | None = None,
) -> list[FinishedSystem]:
    """Print and write the scores and the parameters of finished systems. Return the systems, folder by folder."""
    check_writable(output)
    systems = [one for folder in folders for one in measured(folder, split)]
    remarks = not_comparable(finished_systems(folders, split))
    present([scale_table(title, systems, baselines, remarks)], name, output)
    return systems


def analyse_lengths(
    training: Shared,
    suite: Annotated[SuiteConfig, "group_rates"],
    tried: Lengths,
    dry_run: bool = False,
) -> None:
    r"""Train and score systems with one prefix length after the other, MOP and prefix-tuning if --systems is not given.

    The same command resumes an interrupted sweep. Writes OUTPUT/lengths.md, .csv, .png and .svg. Until all runs are
    finished, the results so far are written to OUTPUT/lengths-so-far.* after each run.

      mop-t5 analyse lengths --corpus DIR --backbone DIR --output runs/lengths --dry_run
      mop-t5 analyse lengths --corpus DIR --backbone DIR --output runs/lengths --lengths '[10, 20, 40, 80]' \
          --systems '[MOP, prefix-tuning, HyperPrefix]' --seeds '[0, 1, 2]' --steps 20000 --evaluate_every 1000

    Args:
        training: how to train.
        suite: the systems, and how to score them.
        tried: the prefix lengths.
        dry_run: only print what would be done.
    """
    sweep, folder = LengthSweep(suite, training, tried.lengths), Path(suite.output)

    def write(name: str) -> None:
        for path in folder.glob("lengths-so-far.*"):  # otherwise each table would be kept beside the next
            path.unlink()
        present([sweep.table()], name, folder)
        say_written(sweep.plot(folder / name))

    def write_so_far() -> None:
        if not sweep.suite.finished:
            write("lengths-so-far")

    if carry_out(sweep.suite, dry_run, write_so_far):
        write("lengths")
