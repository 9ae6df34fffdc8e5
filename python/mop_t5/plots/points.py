"""Points of several series in one plot, and lines between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mop_t5.plots.figures import save_figure


def plot_points(
    path: str | Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    lines: bool = True,
    x_ticks: Sequence[tuple[float, str]] = (),
) -> list[Path]:
    """Write PATH.png and PATH.svg and return both. series: its name -> (x, y). lines: between the points of one.
    x_ticks: (x, its label), in place of numbers."""
    from matplotlib.figure import Figure

    if not any(series.values()):
        raise ValueError("series must hold at least one point.")
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for position, (name, points) in enumerate(series.items()):
        # ten colours, so further series differ by their marks
        axes.plot(*zip(*sorted(points)), "os^Dv"[position // 10 % 5] + ("-" if lines else ""), label=name)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=x_label, ylabel=y_label)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    if x_ticks:
        slanted = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(*zip(*x_ticks), **(slanted if max(len(label) for _, label in x_ticks) > 4 else {}))
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, path, [*series, title, x_label, y_label, *(label for _, label in x_ticks)])
