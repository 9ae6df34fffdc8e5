"""Plot generated prefixes in two dimensions: one row of panels per run, coloured by layer and by scenario."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mop_t5.plots.figures import look, save_figure

from mop_lab.analysis.prefixes import Prefixes, joint_pca

_SHARED = "all scenarios share it"
_POINT = {"s": 12, "linewidths": 0, "alpha": 0.6, "rasterized": True}  # an SVG with thousands of marks opens slowly


def plot_prefixes(path: str | Path, prefixes: Sequence[Prefixes], kind: str, title: str) -> list[Path]:
    """Plot the prefixes of runs. All panels share the axes of one PCA of all runs, each with its share of variance.

    Args:
        path: The path of the files without a suffix.
        prefixes: The prefixes of each run.
        kind: "keys" or "values".
        title: The title of the plot.

    Returns:
        PATH.png and PATH.svg.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fitted, points = joint_pca(prefixes, kind)
    layers = 1 + max(int(one.layer.max()) for one in prefixes)
    scenarios = list(dict.fromkeys(name for one in prefixes for name in one.scenarios if (one.scenario >= 0).any()))
    looks = {name: look(number) for number, name in enumerate(scenarios)}
    if any((one.scenario < 0).any() for one in prefixes):
        looks[_SHARED] = {"color": "0.35", "marker": "o"}
    longest = max(len(name) for name in looks)
    figure = Figure(figsize=(9 + 0.09 * longest, 1.4 + 3.4 * len(prefixes)), layout="constrained")
    panels = figure.subplots(len(prefixes), 2, sharex=True, sharey=True, squeeze=False)
    # bounds between the numbers of layers give each layer one colour
    norm, colours = BoundaryNorm(np.arange(0.5, layers + 1), 256), colormaps["viridis"]
    for (by_layer, by_scenario), one, place in zip(panels, prefixes, points):
        mixed = np.random.default_rng(0).permutation(len(place))  # no scenario is drawn on top of all others
        by_layer.scatter(*place[mixed].T, c=one.layer[mixed] + 1, cmap=colours, norm=norm, **_POINT)
        for some in np.array_split(mixed, 10):
            for index in np.unique(one.scenario[some]):
                own = place[some[one.scenario[some] == index]]
                by_scenario.scatter(*own.T, **_POINT, **looks[one.scenarios[index] if index >= 0 else _SHARED])
        by_layer.set_title(f"{one.label}: by layer", fontsize=10)
        by_scenario.set_title(f"{one.label}: by scenario", fontsize=10)
        by_layer.set_ylabel(f"component 2 ({100 * fitted.explained_variance_ratio_[1]:.1f} % of variance)", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel(f"component 1 ({100 * fitted.explained_variance_ratio_[0]:.1f} % of variance)", fontsize=9)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    every = max(1, layers // 12)
    figure.colorbar(
        ScalarMappable(norm, colours),
        ax=panels[:, 0],
        location="bottom",
        label="layer",
        ticks=range(1, layers + 1, every),
        aspect=40,
        pad=0.02,
    )
    marks = [Line2D([], [], linestyle="", markersize=7, **how) for how in looks.values()]
    figure.legend(marks, list(looks), loc="outside right upper", title="scenario", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return save_figure(figure, path, [*looks, *(one.label for one in prefixes), title])
