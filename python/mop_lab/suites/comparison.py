"""Tables 2 and 3: scores of systems over seeds, beside the paper's and the floors, and their gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from mop_t5.evaluation import MetricScores, Table, TaskScores, combined, metric_names

from mop_lab.suites import paper

Means = Mapping[str, TaskScores | None]  # of one system: scenario or AVERAGE -> scores, None where there are none


def over_seeds(
    seeds: Sequence[Mapping[str, TaskScores]], combine: Callable[[list[float]], float]
) -> dict[str, TaskScores]:
    """`combine` (such as statistics.mean) of each score over the seeds."""
    return {name: combined(combine, [one[name] for one in seeds]) for name in seeds[0]}


def relative_gains(systems: Mapping[str, Means], over: Sequence[str]) -> dict[str, Means]:
    """score / best - 1 of every system, in each column and metric by itself; best: the highest of the systems `over`.

    Empty where one of them is missing.
    """
    return _against(systems, over, lambda score, best: score / best - 1 if best else float("nan"))


def differences(systems: Mapping[str, Means], whole: str) -> dict[str, Means]:
    """score minus that of the system `whole`. Empty where it is missing."""
    return _against(systems, [whole], lambda score, best: score - best)


def _against(systems: Mapping[str, Means], over: Sequence[str], compare: Callable) -> dict[str, Means]:
    if not set(over) <= set(systems):
        return {}

    def one(mine: TaskScores | None, column: str) -> TaskScores | None:
        others = [systems[label].get(column) for label in over]
        if mine is None or None in others:
            return None
        return combined(lambda numbers: compare(numbers[0], max(numbers[1:])), [mine, *others])

    return {label: {c: one(scores, c) for c, scores in means.items()} for label, means in systems.items()}


def table_2(
    what: str, runs: Mapping[str, Sequence[Mapping[str, TaskScores]]], floors: Mapping[str, Means], notes: Sequence[str]
) -> list[Table]:
    """The scores, the gains over MTL-vanilla, and those over the better one of the two hypernetworks.

    what: how was scored, for the title. runs: system -> one result a seed, scenario -> scores, the average last.
    """
    ours, theirs, columns = _by_system(runs)
    tables = [_scores(2, what, runs, floors, notes)]
    for over in ([paper.BASELINE], list(paper.HYPERNETWORKS)):
        name = over[0] if len(over) == 1 else f"the better one of {' and '.join(over)}"
        printed = relative_gains({label: paper.scores_of(label, columns) for label in paper.TABLE_2}, over)
        gains = relative_gains(ours, over), {label: printed[label] for label in theirs}
        rows = _beside(*gains, columns, over, f"over {over[0] if len(over) == 1 else 'best hypernetwork'}")
        title = f"Table 2. Gain over {name}, in %{_metrics(ours)}{_missing(over, ours)}"
        tables.append(_table(title, ours, rows, "+.2f"))
    return tables


def table_3(
    what: str, runs: Mapping[str, Sequence[Mapping[str, TaskScores]]], floors: Mapping[str, Means], notes: Sequence[str]
) -> list[Table]:
    """The scores, and what each system has more or less than MOP. Arguments as of table_2."""
    ours, theirs, columns = _by_system(runs)
    tables = [_scores(3, what, runs, floors, notes)]
    printed = differences({paper.WHOLE: paper.scores_of(paper.WHOLE, columns)} | theirs, paper.WHOLE)
    lost = differences(ours, paper.WHOLE), {label: printed[label] for label in theirs}
    rows = _beside(*lost, columns, [paper.WHOLE], f"minus {paper.WHOLE}")
    title = f"Table 3. Difference from {paper.WHOLE}, in points{_metrics(ours)}{_missing([paper.WHOLE], ours)}"
    return [*tables, _table(title, ours, rows, "+.2f")]


def _by_system(runs) -> tuple[dict[str, Means], dict[str, Means], list[str]]:
    """Our means, the paper's scores of the same systems, and the columns of both; the paper has ROUGE only."""
    ours: dict[str, Means] = {label: over_seeds(seeds, mean) for label, seeds in runs.items()}
    columns = list(next(iter(ours.values())))
    theirs = {label: None if _own_metrics(ours) else paper.scores_of(label, columns) for label in ours}
    return ours, {label: scores for label, scores in theirs.items() if scores is not None}, columns


def _scores(number: int, what: str, runs, floors: Mapping[str, Means], notes: Sequence[str]) -> Table:
    ours, theirs, columns = _by_system(runs)
    rows = []
    for label, seeds in runs.items():
        several = len(seeds) > 1
        rows.append([label, f"mean of {len(seeds)}" if several else "ours", *(ours[label][c] for c in columns)])
        if several:
            spread = over_seeds(seeds, stdev)
            rows.append([label, "deviation (n - 1)", *(spread[c] for c in columns)])
        if label in theirs:
            rows.append([label, "paper", *(theirs[label][c] for c in columns)])
    rows += [[name, "floor", *(means[c] for c in columns)] for name, means in floors.items()]
    about_the_paper = () if _own_metrics(ours) else paper.NOTES[number]
    return _table(f"Table {number}. {what}", ours, rows, ".2f", [*about_the_paper, *notes])


def _beside(
    ours: Mapping[str, Means], theirs: Mapping[str, Means], columns: list[str], over: list[str], what: str
) -> list[list]:
    """Rows of our and of the paper's systems, without the one that all are compared with."""
    labels = [label for label in dict.fromkeys([*ours, *theirs]) if [label] != over]
    sources = (("ours", ours), ("paper", theirs))
    return [
        [label, f"{what}, {name}", *(s[label][c] for c in columns)]
        for label in labels
        for name, s in sources
        if label in s
    ]


def _own_metrics(ours: Mapping[str, Means]) -> bool:
    return any(isinstance(scores, MetricScores) for means in ours.values() for scores in means.values())


def _metrics(ours: Mapping[str, Means]) -> str:
    """What the cells show, where it is the same in all columns; else each column says it (see _table)."""
    return "" if _own_metrics(ours) else ": R-1/R-2/R-L"


def _missing(over: Sequence[str], ours: Mapping[str, Means]) -> str:
    return "" if set(over) <= set(ours) else f". Ours are missing: {' and '.join(over)} must be among the systems"


def _table(title: str, ours: Mapping[str, Means], rows: list[list], format: str, notes: Sequence[str] = ()) -> Table:
    shown = {column: metric_names(scores) for column, scores in next(iter(ours.values())).items()}
    named = [f"{column}: {metrics}" for column, metrics in shown.items()] if _own_metrics(ours) else shown
    columns = ["system", "quantity", *named]
    return Table(title, columns, rows, dict.fromkeys(columns[2:], format), notes, labels=2)
