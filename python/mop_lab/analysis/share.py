"""Compare the scores of finished systems with their trained parameters, and with the size of the backbone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill

from mop_t5.evaluation import AVERAGE, Table
from mop_t5.operations.attach import count_parameters, is_attached
from mop_t5.operations.run_folder import load_run
from mop_t5.plots.figures import look, save_figure
from mop_t5.plots.point_labels import label_points

from mop_lab.finished_runs import FinishedSystem, finished_systems, suite_baselines


def measured(folder: str | Path, split: str = "test") -> list[FinishedSystem]:
    """Return the systems in a folder with their numbers of parameters, fewest trained parameters first.

    Args:
        folder: A folder with evaluated runs, such as the output of a suite.
        split: The split that was scored.

    Raises:
        FileNotFoundError: The folder does not exist, or has no evaluation of the split.
        ValueError: A run is damaged.
    """
    found = map(_counted, finished_systems([folder], split))
    return sorted(found, key=lambda one: (one.trained, one.label))


def _counted(system: FinishedSystem) -> FinishedSystem:
    """Return the system with its numbers of parameters. Load a run to count them if no suite has."""
    if system.backbone:
        return system
    model, _, _ = load_run(system.runs[0].folder)
    count = count_parameters(model)
    trained = count.trained if is_attached(model) else count.backbone
    return replace(system, trained=trained, backbone=count.backbone)


def baselines_in(folders: Sequence[str | Path], split: str = "test") -> dict[str, float]:
    """Return baseline -> average, times 100, as suites have scored the baselines.

    Args:
        folders: Output folders of suites. Others have no baselines.
        split: The split that was scored.

    Raises:
        ValueError: Two suites have different scores of one baseline.
    """
    found: dict[str, float] = {}
    for folder in folders:
        for name, scores in suite_baselines(folder, split).items():
            score = 100 * scores[AVERAGE].mean
            if found.setdefault(name, score) != score:
                raise ValueError(
                    f"{folder} has another score of the baseline {name!r} than an earlier suite. Give suites that were "
                    "scored on the same rows."
                )
    return found


def scale_table(
    title: str,
    systems: Sequence[FinishedSystem],
    baselines: Mapping[str, float] | None = None,
    remarks: Sequence[str] = (),
) -> Table:
    """Return a table with one row per folder and system, and below them one row per baseline.

    Args:
        title: The title of the table.
        systems: The systems.
        baselines: baseline -> score.
        remarks: Notes before the notes of the table.

    Raises:
        ValueError: There is no system.
    """
    if not systems:
        raise ValueError("no folders are given. Name at least one with runs that were evaluated.")
    rows: list[list[object]] = [
        [s.folder, s.label, s.backbone, s.trained, s.share, len(s.seeds), mean(s.averages), _deviation(s)]
        for s in sorted(systems, key=lambda one: (one.backbone, one.folder, one.trained))
    ]
    rows += [["", name, *[None] * 4, score, None] for name, score in (baselines or {}).items()]
    formats = {"backbone": ",d", "trained": ",d", "trained, %": ".4f", "score": ".2f", "deviation (n - 1)": ".2f"}
    columns = ["folder", "system", "backbone", "trained", "trained, %", "seeds", "score", "deviation (n - 1)"]
    notes = [
        *remarks,
        "trained, %: of the parameters of the backbone. For a system that is trained once per scenario, the parameters "
        "of all its models count.",
        "score: mean of a task's metrics x 100, average over tasks, mean over seeds.",
    ]
    if baselines:
        notes.append("Rows without parameters are baselines, computed without a model.")
    return Table(title, columns, rows, formats, notes, labels=2)


def _deviation(system: FinishedSystem) -> float | None:
    """Return the deviation (n - 1) of the averages over seeds. None for a single seed."""
    return stdev(system.averages) if len(system.averages) > 1 else None


def plot_share(
    path: str | Path, systems: Sequence[FinishedSystem], baselines: Mapping[str, float], title: str
) -> list[Path]:
    """Plot scores against the trained share: one labelled point per system, with the deviation over seeds.

    A logarithmic axis cannot show a system that trains nothing. Such a system is a horizontal line, as the baselines
    are. A line far from all points stands in the legend only.

    Args:
        path: The path of the files without a suffix.
        systems: The systems.
        baselines: baseline -> score.
        title: The title of the plot.

    Returns:
        PATH.png and PATH.svg.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    several = Counter(one.label for one in systems)
    folders = {s.folder: Path(s.folder).name for s in systems}
    if len(set(folders.values())) < len(folders):
        folders = {folder: folder for folder in folders}  # a/tables and b/tables
    named = [(f"{s.label} ({folders[s.folder]})" if several[s.label] > 1 else s.label, s) for s in systems]
    lines = {name: mean(s.averages) for name, s in named if not s.trained} | dict(baselines)
    shown = {name: (s.share, mean(s.averages), _deviation(s) or 0) for name, s in named if s.trained}
    points = list(shown.values())
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for number, (x, y, bar) in enumerate(points):
        axes.errorbar(x, y, bar or None, **look(number), linestyle="", capsize=3, markersize=7, zorder=3)
    low, high = min((y - bar for _, y, bar in points), default=0), max((y + bar for _, y, bar in points), default=100)
    near = [score for score in lines.values() if 2 * low - high <= score <= 2 * high - low]
    for (name, score), style in zip(lines.items(), ("-", "--", ":", "-.") * len(lines)):
        label = f"{name}, {score:.1f}"
        if score in near:
            axes.axhline(score, color="0.45", linestyle=style, linewidth=1.2, label=label, zorder=1)
        else:  # a far line would press the points into a corner
            axes.plot([], linestyle="", label=f"{label} (below or above the picture)")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("trained parameters, % of the backbone's")
    axes.set_ylabel("score: mean of metrics, average over scenarios x 100")
    axes.margins(x=0.15, y=0.08)
    axes.grid(alpha=0.25)
    if points and max(points)[0] < 100 * min(points)[0]:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    if lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    label_points(axes, points, [fill(name, 36) for name in shown], near)
    return save_figure(figure, path, [*(name for name, _ in named), *lines, title])
