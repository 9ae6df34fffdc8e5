"""Write names beside the points of a plot so that they cover neither points nor each other."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT_SIZE = 8
_NEAR = 9.0  # distance in points from the middle of a mark to its label; a line leads to a label that is further away
_ANGLES = [0, math.pi, math.pi / 2, -math.pi / 2, *(math.pi * n / 8 for n in range(-7, 8) if n % 4)]
# (distance in points, angle) of all places for a label, the best places first
_PLACES = [(distance, angle) for distance in (_NEAR, 16, 26, 38, 52, 68) for angle in _ANGLES]


def label_points(
    axes: "Axes", points: Sequence[tuple[float, float, float]], labels: Sequence[str], lines: Sequence[float] = ()
) -> None:
    """Write a label beside each point.

    The labels are placed one after the other. Each label tries near and far places around its point, and takes the
    place where it covers least.

    Args:
        axes: The axes. Their limits must be final.
        points: Points (x, y, half the height of the error bar).
        labels: One label per point.
        lines: y of horizontal lines. Labels avoid the lines and the error bars if possible.
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    figure = axes.figure
    assert isinstance(figure, Figure)  # not a part of a figure
    figure.draw_without_rendering()  # lays out the axes, on which all places depend
    scale, frame = figure.dpi / 72, axes.get_window_extent()

    def at(x: float, y: float) -> tuple[float, float]:
        return tuple(axes.transData.transform((x, y)))

    marks = [at(x, y) for x, y, _ in points]
    covered = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in marks]
    heights = [at(points[0][0], y)[1] for y in lines] if points else []
    thin = [Bbox.from_extents(frame.x0, y - scale, frame.x1, y + scale) for y in heights]
    thin += [
        Bbox.from_extents(mark[0] - 3 * scale, at(x, y - bar)[1], mark[0] + 3 * scale, at(x, y + bar)[1])
        for mark, (x, y, bar) in zip(marks, points)
    ]

    def cost(box: Bbox, distance: float) -> float:
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        over = sum(box.overlaps(other) for other in covered)
        return 100 * outside + 10 * over + sum(box.overlaps(one) for one in thin) + distance / 100

    for number in sorted(range(len(points)), key=lambda n: marks[n]):
        text = axes.annotate(labels[number], points[number][:2], fontsize=_FONT_SIZE, zorder=4)
        text.set_in_layout(False)
        size = text.get_window_extent()
        found: list[tuple[float, float, Bbox]] = []
        for distance, angle in _PLACES:
            x, y = math.cos(angle), math.sin(angle)
            # a label beside a point starts or ends there; a label above or below it is centred
            left = marks[number][0] + distance * scale * x - size.width * (1 - x) / 2
            bottom = marks[number][1] + distance * scale * y - size.height * (1 - y) / 2
            box = Bbox.from_bounds(left, bottom, size.width, size.height)
            found.append((cost(box.expanded(1.02, 1.1), distance), distance, box))
        _, distance, box = min(found, key=lambda one: one[0])
        covered.append(box)
        text.remove()
        offset = ((box.x0 - marks[number][0]) / scale, (box.y0 - marks[number][1]) / scale)
        arrow = None if distance <= _NEAR else {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkB": 4}
        written = axes.annotate(
            *(labels[number], points[number][:2]),
            xytext=offset,
            textcoords="offset points",
            fontsize=_FONT_SIZE,
            verticalalignment="bottom",
            arrowprops=arrow,
            zorder=4,
        )
        written.set_in_layout(False)
