"""Check whether the scores of finished systems are comparable: scored in one way, on the same scenarios and rows."""

from collections.abc import Sequence

from mop_t5.data import Example
from mop_t5.operations.contents import of_rows

from mop_lab.finished_runs import FinishedSystem

WAYS_OF_TEXTS = ("implementation", "unit", "normalise")  # how given texts are scored
_WAYS = (*WAYS_OF_TEXTS, "num_beams")


def not_comparable(systems: Sequence[FinishedSystem]) -> list[str]:
    """Return one sentence per reason why the scores of the systems must not be compared. Empty without a reason.

    Evaluations of which only the scores are left, without run.json or predictions, are passed over in the checks of
    settings and rows.
    """
    return [*scored_differently(systems), *_of_different_rows(systems), *of_different_scenarios(systems)]


def scored_differently(systems: Sequence[FinishedSystem], settings: Sequence[str] = _WAYS) -> list[str]:
    """Return a sentence if these settings, or the metrics of tasks, differ between evaluations.

    Args:
        systems: The systems.
        settings: The settings to compare, by their names in run.json of an evaluation.
    """
    ways: dict[tuple[str, ...], str] = {}
    for system in systems:
        for how in (run.scoring for run in system.runs if run.is_documented):
            way = [f"{name} {how[name]}" for name in settings]
            for task, own in how.get("metrics", {}).items():
                positive = f" of {own['positive']}" if "positive" in own else ""
                way.append(f"{task}: {', '.join(own['metrics'])}{positive}")
            ways.setdefault(tuple(way), system.label)
    if len(ways) < 2:
        return []
    named = (f"{label}: {', '.join(way)}" for way, label in ways.items())
    return [f"Not all systems were scored in the same way ({'; '.join(named)}): their scores are not comparable."]


def of_different_scenarios(systems: Sequence[FinishedSystem]) -> list[str]:
    """Return a sentence if the averages of the systems are over different scenarios."""
    if len({frozenset(next(iter(system.scores.values()))) for system in systems}) < 2:
        return []
    return ["Not all systems were scored on the same scenarios: their averages are not comparable."]


def _of_different_rows(systems: Sequence[FinishedSystem]) -> list[str]:
    """Return one sentence per scenario on whose rows the systems differ.

    Rows differ if a corpus changed and not every run was evaluated again.
    """
    first: dict[str, tuple[str, object]] = {}  # scenario -> a system and the checksum of its rows
    found: dict[str, str] = {}
    for system in systems:
        for runs in system.seeds.values():
            rows: dict[str, list[Example]] = {}
            for example, _ in (row for run in runs if run.is_documented for row in run.predictions()):
                rows.setdefault(example.scenario, []).append(example)
            for scenario, examples in rows.items():
                # rows are in the order of their ids, which may have changed without the rows
                own = of_rows(sorted(examples, key=lambda e: (e.dialogue, e.golds)))["sha256"]
                label, theirs = first.setdefault(scenario, (system.label, own))
                if own != theirs:
                    found.setdefault(
                        scenario,
                        f"{label} and {system.label} were evaluated on different rows of {scenario}: their scores are "
                        "not comparable. Evaluate them again on one corpus.",
                    )
    return list(found.values())


def common_rows(
    trainings: Sequence[tuple[FinishedSystem, int]],
) -> tuple[list[Example], dict[tuple[str, int], list[str]]]:
    """Read the predictions of trainings on the same rows.

    Args:
        trainings: System and seed of each training.

    Returns:
        The rows in order, and (label of the system, seed) -> one text per row.

    Raises:
        FileNotFoundError: A run has no predictions.
        ValueError: Predictions are damaged, or the trainings were evaluated on different rows.
    """
    said = {(system.label, seed): system.predictions(seed) for system, seed in trainings}
    ((first, first_seed), rows), *others = ((key, [example for example, _ in mine]) for key, mine in said.items())
    for (label, seed), mine in others:
        if mine != rows:
            raise ValueError(
                f"{first}, seed {first_seed} and {label}, seed {seed} were not evaluated on the same rows ({len(rows)} "
                f"and {len(mine)}), so they cannot be compared. Give runs on one corpus, split and choice of scenarios."
            )
    return rows, {key: [text for _, text in mine] for key, mine in said.items()}
