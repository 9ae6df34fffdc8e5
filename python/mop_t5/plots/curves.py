"""Plot curves over training steps, such as losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mop_t5.files import StrPath
from mop_t5.plots.figures import look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = "training loss (nats per token)"
_DASHES = ("-", "--", ":", "-.")  # no divisor in common with the number of colours, so that all pairs occur

Curve = Sequence[tuple[int, float]]  # (step, value) points


class Panel(NamedTuple):
    """One panel of a figure.

    Attributes:
        y_label: Label of the vertical axis.
        curves: The curves of each system.
        title: Title of the panel.
        may_be_log: Whether the vertical axis is logarithmic if the values differ by more than a factor of 5.
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = [
        Panel(LOSS, {system: [curve] for system, curve in curves.items()}, title, may_be_log=True)
        for title, curves in panels.items()
    ]
    figure = curve_figure(drawn, list(dict.fromkeys(system for curves in panels.values() for system in curves)))
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
