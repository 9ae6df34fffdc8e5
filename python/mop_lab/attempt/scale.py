"""Scores of finished systems against parameters, on one or several backbones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from mop_t5.plots.charts import plot_points

from mop_lab.finished_runs import FinishedSystem


def plot_scale(folder: Path, names: Sequence[str], suites: Sequence[Sequence[FinishedSystem]]) -> Iterator[list[Path]]:
    """Plot scores against trained parameters and, for several backbones, against the parameters of the backbone.

    Args:
        folder: The folder for the plots.
        names: The title of each suite.
        suites: The systems of each suite.

    Yields:
        The files of a plot: score-by-trained-N of the N-th suite; then score-by-backbone and trained-by-backbone.
    """
    score, trained = "score x 100", "trained parameters"
    for number, (name, found) in enumerate(zip(names, suites), start=1):
        path = folder / f"score-by-trained-{number}"
        points = {one.label: [(one.trained, mean(one.averages))] for one in found if one.trained}
        yield plot_points(path, points, name, x_label=trained, y_label=score, log_x=True, lines=False)
    everything = [one for found in suites for one in found]
    if len({one.backbone for one in everything}) > 1:
        of_scores: dict[str, list[tuple[float, float]]] = {}  # system -> one point per backbone
        of_trained: dict[str, list[tuple[float, float]]] = {}
        for one in everything:
            of_scores.setdefault(one.label, []).append((one.backbone, mean(one.averages)))
            if one.trained:
                of_trained.setdefault(one.label, []).append((one.backbone, one.trained))
        x_label = "parameters of the backbone"
        yield plot_points(folder / "score-by-backbone", of_scores, "scores", x_label=x_label, y_label=score, log_x=True)
        path = folder / "trained-by-backbone"
        yield plot_points(path, of_trained, trained, x_label=x_label, y_label=trained, log_x=True, log_y=True)
