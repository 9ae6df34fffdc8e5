"""Scores of finished systems against parameters, on one or several backbones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from mop_t5.plots.charts import plot_points

from mop_lab.finished_runs import FinishedSystem


def plot_scale(folder: Path, systems: Sequence[FinishedSystem]) -> Iterator[list[Path]]:
    """Plot scores against trained parameters and, for several backbones, against the parameters of the backbone.

    Args:
        folder: The folder for the plots.
        systems: The systems, in the order of their suites.

    Yields:
        The files of a plot: score-by-trained-N of the N-th suite; then score-by-backbone and trained-by-backbone.
    """
    score, trained = "score x 100", "trained parameters"
    for number, suite in enumerate(dict.fromkeys(one.folder for one in systems), start=1):
        path = folder / f"score-by-trained-{number}"
        found = [one for one in systems if one.folder == suite and one.trained]
        points = {one.label: [(one.trained, mean(one.averages))] for one in found}
        yield plot_points(path, points, suite, x_label=trained, y_label=score, log_x=True, lines=False)
    if len({one.backbone for one in systems}) > 1:
        of_scores: dict[str, list[tuple[float, float]]] = {}  # system -> one point per backbone
        of_trained: dict[str, list[tuple[float, float]]] = {}
        for one in systems:
            of_scores.setdefault(one.label, []).append((one.backbone, mean(one.averages)))
            if one.trained:
                of_trained.setdefault(one.label, []).append((one.backbone, one.trained))
        x_label = "parameters of the backbone"
        yield plot_points(folder / "score-by-backbone", of_scores, "scores", x_label=x_label, y_label=score, log_x=True)
        path = folder / "trained-by-backbone"
        yield plot_points(path, of_trained, trained, x_label=x_label, y_label=trained, log_x=True, log_y=True)
