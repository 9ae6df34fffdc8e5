"""Tables 2 and 3: scores of systems over seeds, beside the paper's scores and the baselines, and their gains."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from mop_t5.evaluation import MetricScores, Table, TaskScores, combined, metric_names

from mop_lab.suites import paper
from mop_lab.suites.score_rows import Repetitions, over_seeds, quantities

Means = Mapping[str, TaskScores | None]  # of one system: scenario or AVERAGE -> scores, None where there are none


def relative_gains(systems: Mapping[str, Means], over: Sequence[str]) -> dict[str, dict[str, TaskScores | None]]:
    """Return score / best - 1 of every system, for each column and metric by itself.

    Args:
        systems: label -> scores.
        over: Labels. The best score is the highest score of these systems.

    Returns:
        label -> gains. Empty if one of the systems `over` is missing.
    """
    return _against(systems, over, lambda score, best: score / best - 1 if best else float("nan"))


def differences(systems: Mapping[str, Means], whole: str) -> dict[str, dict[str, TaskScores | None]]:
    """Return the score of every system minus the score of the system `whole`. Empty if that system is missing."""
    return _against(systems, [whole], lambda score, best: score - best)


def _against(
    systems: Mapping[str, Means], over: Sequence[str], compare: Callable[[float, float], float]
) -> dict[str, dict[str, TaskScores | None]]:
    if not set(over) <= set(systems):
        return {}

    def compared(mine: TaskScores | None, column: str) -> TaskScores | None:
        others = [scores for label in over if (scores := systems[label].get(column)) is not None]
        if mine is None or len(others) < len(over):
            return None
        return combined(lambda numbers: compare(numbers[0], max(numbers[1:])), [mine, *others])

    return {label: {c: compared(scores, c) for c, scores in means.items()} for label, means in systems.items()}


class PaperTables:
    """Tables 2 and 3 of some results.

    Args:
        title: How the systems were scored.
        runs: label of a system -> one result per seed: scenario -> scores, the average last.
        baselines: name of a baseline -> scenario -> scores.
        notes: Notes on the runs.
    """

    def __init__(
        self,
        title: str,
        runs: Mapping[str, Repetitions],
        baselines: Mapping[str, Mapping[str, TaskScores]],
        notes: Sequence[str],
    ):
        self._title, self._runs, self._baselines, self._notes = title, runs, baselines, notes
        self._ours = {label: over_seeds(seeds, mean) for label, seeds in runs.items()}
        first = next(iter(self._ours.values()))
        self._columns = list(first)
        self._metrics = {column: metric_names(scores) for column, scores in first.items()}
        # the paper has ROUGE only
        self._own = any(isinstance(s, MetricScores) for means in self._ours.values() for s in means.values())
        printed = {label: None if self._own else paper.scores_of(label, self._columns) for label in self._ours}
        self._theirs: dict[str, Means] = {label: scores for label, scores in printed.items() if scores is not None}

    def table_2(self) -> list[Table]:
        """Return the scores, the gains over MTL-vanilla, and the gains over the better hypernetwork."""
        tables = [self._scores(2)]
        known = {label: paper.scores_of(label, self._columns) or {} for label in paper.TABLE_2}
        for over, name, short in (
            ([paper.BASELINE], paper.BASELINE, paper.BASELINE),
            (list(paper.HYPERNETWORKS), f"the better one of {' and '.join(paper.HYPERNETWORKS)}", "best hypernetwork"),
        ):
            title = f"Table 2. Gain over {name}, in %"
            gains = relative_gains(self._ours, over), relative_gains(known, over)
            tables.append(self._beside(title, *gains, over, f"over {short}"))
        return tables

    def table_3(self) -> list[Table]:
        """Return the scores, and the difference of each system from MOP."""
        whole = paper.scores_of(paper.WHOLE, self._columns) or {}
        lost = differences(self._ours, paper.WHOLE), differences({paper.WHOLE: whole, **self._theirs}, paper.WHOLE)
        title = f"Table 3. Difference from {paper.WHOLE}, in points"
        return [self._scores(3), self._beside(title, *lost, [paper.WHOLE], f"minus {paper.WHOLE}")]

    def _scores(self, number: int) -> Table:
        rows = []
        for label, seeds in self._runs.items():
            for quantity, combine in quantities(len(seeds), "ours").items():
                rows.append(self._row(label, quantity, over_seeds(seeds, combine)))
            if label in self._theirs:
                rows.append(self._row(label, "paper", self._theirs[label]))
        rows += [self._row(name, "baseline", means) for name, means in self._baselines.items()]
        about_the_paper = () if self._own else paper.NOTES[number]
        return self._table(f"Table {number}. {self._title}", rows, ".2f", [*about_the_paper, *self._notes])

    def _beside(
        self, title: str, ours: Mapping[str, Means], printed: Mapping[str, Means], over: Sequence[str], what: str
    ) -> Table:
        """Return our systems beside the paper's, without the one system that all are compared with."""
        theirs = {label: printed[label] for label in self._theirs if label in printed}
        rows = [
            self._row(label, f"{what}, {name}", source[label])
            for label in dict.fromkeys([*ours, *theirs])
            for name, source in (("ours", ours), ("paper", theirs))
            if label in source and [label] != over
        ]
        title += "" if self._own else ": R-1/R-2/R-L"  # else the header of each column names its metrics
        missing = not set(over) <= set(self._ours)
        title += f". Ours are missing: {' and '.join(over)} must be among the systems" if missing else ""
        return self._table(title, rows, "+.2f")

    def _row(self, label: str, quantity: str, means: Means) -> list[object]:
        return [label, quantity, *(means[column] for column in self._columns)]

    def _table(self, title: str, rows: list[list[object]], specification: str, notes: Sequence[str] = ()) -> Table:
        named = [f"{column}: {names}" if self._own else column for column, names in self._metrics.items()]
        return Table(title, ["system", "quantity", *named], rows, dict.fromkeys(named, specification), notes, labels=2)
