"""The loss curves of runs, and the scores of their validations, as one SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from warnings import catch_warnings, simplefilter

from mop_t5.operations.run_folder import read_history
from mop_t5.plots.figures import look, save_figure

from mop_lab.finished_runs import FinishedSystem
from mop_lab.report.found import Plot

_PANELS = {"training loss (nats a token)": ("loss",), "validation score": ("eval_mean", "eval_rouge")}
_LINES = ("-", "--", ":", "-.")  # no divisor in common with the number of colours, so that all pairs occur


def loss_curves(systems: Sequence[FinishedSystem]) -> Plot | None:
    """A line a run, the colour and the dashes of its system; None where no run has a history."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = {
        panel: [(number, points) for number, s in enumerate(systems) for points in _curves(s, keys)]
        for panel, keys in _PANELS.items()
    }
    panels = {panel: lines for panel, lines in curves.items() if lines}
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 3.4 + 0.2 * (len(systems) // 2)), layout="constrained")
    for axes, (panel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for number, points in lines:
            axes.plot(*zip(*points), **_style(number), linewidth=1.2, alpha=0.85)
        axes.set(xlabel="step", ylabel=panel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    handles = [Line2D([], [], **_style(number), label=system.label) for number, system in enumerate(systems)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    with TemporaryDirectory() as folder, catch_warnings():
        simplefilter("ignore")  # a font that the PNG lacks: only the SVG is used
        _, svg = save_figure(figure, Path(folder) / "loss-curves", [system.label for system in systems])
        return Plot("loss curves", "image/svg+xml", svg.read_bytes())


def _style(number: int) -> dict[str, str]:
    return {"color": look(number)["color"], "linestyle": _LINES[number % len(_LINES)]}


def _curves(system: FinishedSystem, keys: Sequence[str]) -> list[list[tuple[int, float]]]:
    """Of each run the points (step, value) of the first of these keys that it has."""
    histories = [read_history(run.folder) for runs in system.seeds.values() for run in runs]
    values = [
        [(point["step"], point[key]) for point in history for key in [key for key in keys if key in point][:1]]
        for history in histories
    ]
    return [points for points in values if points]
