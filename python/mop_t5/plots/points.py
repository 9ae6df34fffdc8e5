"""Plot the points of several series, and lines between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mop_t5.files import StrPath
from mop_t5.plots.figures import look, save_figure


def plot_points(
    path: StrPath,
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
    """Write a plot of points as PATH.png and PATH.svg.

    Args:
        path: Path of the files without a suffix.
        series: Name of a series -> its points (x, y).
        title: Title of the plot.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        lines: Whether lines connect the points of a series.
        x_ticks: Ticks (x, label) of the horizontal axis. Empty for numbers.

    Returns:
        The paths of the PNG and of the SVG.

    Raises:
        ValueError: There is no point.
    """
    from matplotlib.figure import Figure

    if not any(series.values()):
        raise ValueError("series must hold at least one point.")
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*sorted(points)), linestyle="-" if lines else "", label=name, **look(number))
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    if x_ticks:
        places, labels = zip(*x_ticks)
        axes.set_xticks(places, labels)
        if max(map(len, labels)) > 4:
            axes.tick_params("x", rotation=20)
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, path, [*series, title, x_label, y_label, *(label for _, label in x_ticks)])
