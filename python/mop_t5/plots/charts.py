"""Draw charts: curves over training steps, points of several series, and heat maps of matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mop_t5.files import StrPath
from mop_t5.plots.figures import look, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN_CELLS = 400  # largest number of cells whose numbers can be read
LOSS = "training loss (nats per token)"
_DASHES = ("-", "--", ":", "-.")  # no divisor in common with the number of colours, so that all pairs occur

Curve = Sequence[tuple[int, float]]  # (step, value) points


class Panel(NamedTuple):
    """One panel of a figure.

    Attributes:
        y_label: Label of the vertical axis.
        curves: The curves of each system.
        title: Title of the panel.
        may_be_log: Make the vertical axis logarithmic if the values differ by more than a factor of 5.
    """

    y_label: str
    curves: Mapping[str, Sequence[Curve]]
    title: str = ""
    may_be_log: bool = False


def curve_figure(panels: Sequence[Panel], systems: Sequence[str]) -> "Figure":
    """Return a figure with the panels side by side and one legend below them.

    Args:
        panels: The panels.
        systems: Names of all systems. Colour and dashes of a system follow its position here.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    styles = {s: (look(number)["color"], _DASHES[number % len(_DASHES)]) for number, s in enumerate(systems)}
    figure = Figure(figsize=(5.2 * len(panels), 3.4 + 0.2 * (len(systems) // 2)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        lines = [(system, points) for system, curves in panel.curves.items() for points in curves]
        for system, points in lines:
            color, dashes = styles[system]
            axes.plot(*zip(*points), color=color, linestyle=dashes, linewidth=1.2, alpha=0.85)
        axes.set(title=panel.title, xlabel="step", ylabel=panel.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        values = [value for _, points in lines for _, value in points]
        if panel.may_be_log and max(values) > 5 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    for system, (color, dashes) in styles.items():  # lines without points, for the legend
        figure.axes[0].plot([], [], color=color, linestyle=dashes, label=system)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def plot_losses(path: StrPath, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    """Write a PNG of loss curves.

    Args:
        path: The file.
        panels: Title of a panel -> name of a system -> its curve.
    """
    drawn = [Panel(LOSS, {s: [c] for s, c in curves.items()}, title, True) for title, curves in panels.items()]
    figure = curve_figure(drawn, list(dict.fromkeys(system for curves in panels.values() for system in curves)))
    figure.savefig(path, dpi=120)


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
        log_x: True if the horizontal axis is logarithmic.
        log_y: True if the vertical axis is logarithmic.
        lines: True if lines connect the points of a series.
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


def heat_map(
    path: StrPath,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    title: str,
    *,
    x_label: str = "",
    y_label: str = "",
) -> list[Path]:
    """Write a heat map as PATH.png and PATH.svg. High values are dark. A small heat map also shows the numbers.

    Args:
        path: Path of the files without a suffix.
        rows: Labels of the rows.
        columns: Labels of the columns.
        values: The values (rows, columns).
        title: Title of the plot.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.

    Returns:
        The paths of the PNG and of the SVG.

    Raises:
        ValueError: `values` has another shape.
    """
    from matplotlib.figure import Figure

    lengths = [len(row) for row in values]
    if lengths != [len(columns)] * len(rows):
        wanted = f"{len(rows)} rows of {len(columns)}, one per label"
        raise ValueError(f"values must be {wanted}; got {len(lengths)} rows of {lengths}.")
    width = 2.4 + 0.08 * max(map(len, rows)) + 0.6 * len(columns)
    figure = Figure(figsize=(width, 1.9 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", aspect="auto")
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    if len(rows) * len(columns) <= _WRITTEN_CELLS:
        low, high = image.get_clim()
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                color = "white" if value > (low + high) / 2 else "black"
                axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image)
    return save_figure(figure, path, [*rows, *columns, title, x_label, y_label])
