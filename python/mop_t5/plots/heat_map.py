"""Plot a matrix of numbers as a heat map."""

from collections.abc import Sequence
from pathlib import Path

from mop_t5.files import StrPath
from mop_t5.plots.figures import save_figure

_WRITTEN_CELLS = 400  # numbers in more cells cannot be read


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
    """Write a heat map as PATH.png and PATH.svg. High values are dark, and few cells also show their numbers.

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

    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(
            f"values must be {len(rows)} rows of {len(columns)}, one per label; got {len(values)} rows of "
            f"{sorted({len(row) for row in values})}."
        )
    longest = max(map(len, rows))
    figure = Figure(
        figsize=(2.4 + 0.08 * longest + 0.6 * len(columns), 1.9 + 0.4 * len(rows)),
        layout="constrained",
    )
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
