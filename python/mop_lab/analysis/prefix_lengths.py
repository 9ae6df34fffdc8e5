"""Sweep over prefix lengths (MOP paper, Fig. 6): train and score systems with one prefix length after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

from mop_t5.evaluation import AVERAGE, Table, TaskScores, by_metric, combined, metric_names
from mop_t5.plots.figures import look, save_figure
from mop_t5.training import TrainingConfig

from mop_lab.finished_runs import FinishedSystem
from mop_lab.suites.suite import Suite, trials_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import choose, fields_of

_FIELD = "prefix_length"
_SYSTEMS = ("MOP", "prefix-tuning")


@dataclass(frozen=True)
class Lengths:
    """The prefix lengths that are tried.

    Args:
        lengths: prefix rows, such as '[10, 40]'. Each length and system has one table row.
    """

    # the paper does not say which lengths it tried, only that 40 was best
    lengths: list[int] = field(default_factory=lambda: [5, 10, 20, 30, 40, 50, 60, 80])

    def __post_init__(self):
        given = self.lengths
        if not given or len(set(given)) != len(given) or min(given) < 1:
            raise ValueError(f"lengths must be different integers of at least 1, one or more; got {given}.")


class LengthSweep:
    """The runs of systems with every prefix length and seed.

    Args:
        config: The suite. Without systems, MOP and prefix-tuning are trained.
        training: The settings of every training, without learning rate and seed.
        lengths: The prefix lengths.

    Raises:
        ValueError: A method has no prefix length, or `config.options` sets it.
    """

    def __init__(self, config: SuiteConfig, training: TrainingConfig, lengths: Sequence[int]):
        systems = choose(config.systems, _SYSTEMS, config.options, config.learning_rates)
        if without := [system.label for system in systems if _FIELD not in fields_of(system.method)]:
            raise ValueError(f"systems names {', '.join(without)}, whose method has no {_FIELD}. Leave it out.")
        if _FIELD in config.options:
            raise ValueError(f"options names {_FIELD}, which the sweep sets itself. Use --lengths.")
        self.config = config
        self._labels = {(s.label, n): f"{s.label}, N = {n}" for s in systems for n in sorted(lengths)}
        rows = [
            replace(s, label=self._labels[s.label, n], options=s.options | {_FIELD: n})
            for n in lengths
            for s in systems
        ]
        self.suite = Suite(trials_of(rows, config, training))

    def _points(self) -> list[tuple[str, int, FinishedSystem]]:
        """Return the system, the length and the runs of each finished point, ordered by system and length."""
        found = self.suite.systems()
        return [(*place, found[label]) for place, label in self._labels.items() if label in found]

    def table(self) -> Table:
        """Return a table with one row per finished system and length."""
        config, rows, finished = self.config, [], 0
        for system, length, one in self._points():
            averages = [scores[AVERAGE] for scores in one.scores.values()]
            spread = combined(stdev, averages) if len(averages) > 1 else None
            rows.append([system, length, one.trained, one.share, len(averages), combined(mean, averages), spread])
            finished += len(averages)
        metrics = metric_names(averages[0])
        score, deviation = f"average: {metrics}", f"deviation: {metrics}"
        scorer = config.scorer()
        title = f"Prefix length. {scorer}, average over scenarios, on {config.split}, {config.num_beams} beam(s)"
        formats = {"trained": ",d", "trained, %": ".4f", score: ".2f", deviation: ".2f"}
        columns = ["system", "N", "trained", "trained, %", "seeds", score, deviation]
        notes = ["N: prefix rows in every attention. trained, %: of the parameters of the backbone."]
        if finished > len(rows):
            notes.append("Scores are means over the seeds, with their deviations (n - 1).")
        planned = len(self._labels) * len(config.seeds)
        if finished < planned:
            notes.append(f"Of {planned} runs {planned - finished} are not finished.")
        return Table(title, columns, rows, formats, notes)

    def plot(self, path: str | Path) -> list[Path]:
        """Plot the finished scores against the length: one panel per metric, with the deviation over seeds.

        Args:
            path: The path of the files without a suffix.

        Returns:
            PATH.png and PATH.svg.
        """
        from matplotlib.figure import Figure

        by_system: dict[str, dict[int, list[TaskScores]]] = {}  # system -> length -> the average of each seed
        for system, length, one in self._points():
            by_system.setdefault(system, {})[length] = [scores[AVERAGE] for scores in one.scores.values()]
        every = [seeds for points in by_system.values() for seeds in points.values()]
        first = every[0][0]
        titles = dict(zip(by_metric(first), metric_names(first).split("/")))
        figure = Figure(figsize=(1.2 + 3.1 * len(titles), 3.8), layout="constrained")
        panels = figure.subplots(1, len(titles), squeeze=False)[0]
        tried = sorted({length for points in by_system.values() for length in points})
        for axes, (metric, title) in zip(panels, titles.items()):
            for number, points in enumerate(by_system.values()):
                values = [[100 * by_metric(scores)[metric] for scores in seeds] for seeds in points.values()]
                spread = [stdev(seeds) if len(seeds) > 1 else 0 for seeds in values]
                axes.errorbar(
                    list(points),
                    [mean(seeds) for seeds in values],
                    spread if any(spread) else None,
                    **look(number),
                    capsize=3,
                    markersize=5,
                    linewidth=1.5,
                )
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("prefix length N")
            axes.set_xticks(tried, [str(length) for length in tried], fontsize=8)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("average over scenarios x 100")
        most = max(map(len, every))
        bars = f"; bars: deviation over {most} seeds" if most > 1 else ""
        figure.suptitle(f"Scores by prefix length{bars}", fontsize=11)
        lines = [container.lines[0] for container in panels[0].containers]
        figure.legend(lines, list(by_system), loc="outside lower center", ncols=min(4, len(by_system)))
        return save_figure(figure, path, by_system)
