"""What finished systems say about size: scores against trained parameters, and against the size of the backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import NamedTuple

import mop_t5
from mop_t5.evaluation import AVERAGE, SCORES, Table, read_scores
from mop_t5.operations.run_folder import load_run, read_settings
from mop_t5.plots.figures import look, save_figure
from mop_t5.plots.point_labels import label_points

from mop_lab.finished_runs import FinishedSystem, finished_systems


class Measured(NamedTuple):
    """A finished system. folder: that it was found in. trained, backbone: parameters. scores: the averages of its
    seeds, times 100."""

    folder: str
    system: str
    trained: int
    backbone: int
    scores: list[float]


def measured(folder: str | Path, split: str = "test") -> list[Measured]:
    """The systems in a folder, such as the output of a suite, fewest trained parameters first. Raises what
    finished_systems does."""
    found = [
        Measured(str(folder), one.label, *_sizes(one), [100 * seed[AVERAGE].mean for seed in one.scores().values()])
        for one in finished_systems([folder], split)
    ]
    return sorted(found, key=lambda one: (one.trained, one.system))


def _sizes(system: FinishedSystem) -> tuple[int, int]:
    """Trained parameters and those of the backbone; counted here where no suite has."""
    if system.trained is not None:
        return system.trained, system.backbone
    model, _, _ = load_run(next(iter(system.seeds.values()))[0].folder)
    count = mop_t5.count_parameters(model)
    return (count.trained if mop_t5.is_attached(model) else count.backbone), count.backbone


def floors_in(folders: Sequence[str | Path], split: str = "test") -> dict[str, float]:
    """Floor -> its average times 100, as suites have scored them on this split. Raises ValueError where two say
    different things."""
    found: dict[str, float] = {}
    for folder in folders:
        place = Path(folder) / "floors"
        scored = (place / SCORES).is_file() and read_settings(place).get("split") == split
        for name, scores in (read_scores(place) if scored else {}).items():
            score = 100 * scores[AVERAGE].mean
            if found.setdefault(name, score) != score:
                raise ValueError(
                    f"{place} has another score of {name!r} than an earlier suite. Give suites that were scored on the "
                    "same rows."
                )
    return found


def scale_table(
    title: str,
    systems: Sequence[Measured],
    floors: Mapping[str, float] | None = None,
    remarks: Sequence[str] = (),
) -> Table:
    """Return a table with one row per folder and system, and below them the floors.

    remarks: Notes to stand before the table's own. Raises ValueError where there is no system.
    """
    if not systems:
        raise ValueError("no folders are given. Name at least one with runs that were evaluated.")
    rows: list[list[object]] = []
    for one in sorted(systems, key=lambda one: (one.backbone, one.folder, one.trained)):
        deviation = stdev(one.scores) if len(one.scores) > 1 else None
        share = 100 * one.trained / one.backbone
        seeds = len(one.scores)
        rows.append([one.folder, one.system, one.backbone, one.trained, share, seeds, mean(one.scores), deviation])
    rows += [["", name, *[None] * 4, score, None] for name, score in (floors or {}).items()]
    formats = {"backbone": ",d", "trained": ",d", "trained, %": ".4f", "score": ".2f", "deviation (n - 1)": ".2f"}
    columns = ["folder", "system", "backbone", "trained", "trained, %", "seeds", "score", "deviation (n - 1)"]
    notes = [
        *remarks,
        "trained, %: of the parameters of the backbone; of a system that is trained once a scenario those of all its "
        "models.",
        "score: mean of a task's metrics x 100, average over tasks, mean over seeds.",
    ]
    if floors:
        notes.append("Rows without parameters are floors: what no model made.")
    return Table(title, columns, rows, formats, notes, labels=2)


def against_trained(systems: Sequence[Measured]) -> dict[str, list[tuple[float, float]]]:
    """System -> (trained parameters, score), of one folder."""
    return {one.system: [(one.trained, mean(one.scores))] for one in systems if one.trained}


def against_backbone(systems: Sequence[Measured]) -> tuple[dict, dict]:
    """System -> (parameters of the backbone, score), and system -> (parameters of the backbone, trained ones)."""
    scores: dict[str, list[tuple[float, float]]] = {}
    trained: dict[str, list[tuple[float, float]]] = {}
    for one in systems:
        scores.setdefault(one.system, []).append((one.backbone, mean(one.scores)))
        if one.trained:
            trained.setdefault(one.system, []).append((one.backbone, one.trained))
    return scores, trained


def plot_share(path: str | Path, systems: Sequence[Measured], floors: Mapping[str, float], title: str) -> list[Path]:
    """Write PATH.png and PATH.svg and return both: scores against the trained share, a labelled point a system, with
    the deviation over seeds. What trains nothing, which a logarithmic axis cannot show, is a line, as the floors are;
    one far from all systems stands in the legend alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    several = Counter(one.system for one in systems)
    folders = {s.folder: Path(s.folder).name for s in systems}
    if len(set(folders.values())) < len(folders):
        folders = {folder: folder for folder in folders}  # a/tables and b/tables
    names = [f"{s.system} ({folders[s.folder]})" if several[s.system] > 1 else s.system for s in systems]
    lines = {name: mean(s.scores) for name, s in zip(names, systems) if not s.trained} | dict(floors)
    shown = [(name, s) for name, s in zip(names, systems) if s.trained]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    points = [
        (100 * one.trained / one.backbone, mean(one.scores), stdev(one.scores) if len(one.scores) > 1 else 0)
        for _, one in shown
    ]
    for number, (x, y, bar) in enumerate(points):
        axes.errorbar(x, y, bar or None, **look(number), linestyle="", capsize=3, markersize=7, zorder=3)
    low, high = min((y - bar for _, y, bar in points), default=0), max((y + bar for _, y, bar in points), default=100)
    near = [score for score in lines.values() if 2 * low - high <= score <= 2 * high - low]
    for (name, score), style in zip(lines.items(), ("-", "--", ":", "-.") * len(lines)):
        label = f"{name}, {score:.1f}"
        if score in near:
            axes.axhline(score, color="0.45", linestyle=style, linewidth=1.2, label=label, zorder=1)
        else:  # it would press the points into a corner
            axes.plot([], linestyle="", label=f"{label} (below or above the picture)")
    axes.set_title(title, fontsize=11)
    axes.set(
        xlabel="trained parameters, % of the backbone's", ylabel="score: mean of metrics, average over scenarios x 100"
    )
    axes.margins(x=0.15, y=0.08)
    axes.grid(alpha=0.25)
    if points and max(points)[0] < 100 * min(points)[0]:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    if lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    label_points(axes, points, [fill(name, 36) for name, _ in shown], near)
    return save_figure(figure, path, [*names, *lines, title])
