"""Whether the scores of finished systems can stand side by side: scored in one way, and on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from mop_t5.data import Example
from mop_t5.operations.contents import of_rows

from mop_lab.finished_runs import FinishedSystem

_WAYS = ("implementation", "unit", "normalise", "num_beams")


def not_comparable(systems: Sequence[FinishedSystem]) -> list[str]:
    """Return a sentence for each reason why scores of these systems must not be compared. Empty where there is none.

    Evaluations without predictions or run.json, of which scores alone are left, are passed over.
    """
    return scored_differently(systems) + of_different_rows(systems)


def scored_differently(systems: Sequence[FinishedSystem]) -> list[str]:
    """Return a sentence where the systems were not all scored in one way."""
    ways: dict[tuple, str] = {}
    for system in systems:
        for run in (run for runs in system.seeds.values() for run in runs if run.says_how):
            way = [f"{name} {run.scoring[name]}" for name in _WAYS]
            way += [f"{task}: {', '.join(own['metrics'])}" for task, own in run.scoring.get("metrics", {}).items()]
            ways.setdefault(tuple(way), system.label)
    if len(ways) < 2:
        return []
    named = (f"{label}: {', '.join(way)}" for way, label in ways.items())
    return [f"Not all systems were scored in the same way ({'; '.join(named)}): their scores are not comparable."]


def of_different_rows(systems: Sequence[FinishedSystem]) -> list[str]:
    """Return a sentence for each scenario of whose rows the systems were not all evaluated on the same.

    So it is where a corpus changed and not every run was evaluated again.
    """
    first: dict[str, tuple[str, str]] = {}  # scenario -> a system and the checksum of its rows
    found: dict[str, str] = {}
    for system in systems:
        for runs in system.seeds.values():
            rows: dict[str, list[Example]] = {}
            for example, _ in (row for run in runs if run.says_how for row in run.predictions()):
                rows.setdefault(example.scenario, []).append(example)
            for scenario, examples in rows.items():
                # the order of the rows is that of their ids, which may have changed alone
                own = of_rows(sorted(examples, key=lambda e: (e.dialogue, e.golds)))["sha256"]
                label, theirs = first.setdefault(scenario, (system.label, own))
                if own != theirs:
                    found.setdefault(
                        scenario,
                        f"{label} and {system.label} were evaluated on different rows of {scenario}: their scores are "
                        "not comparable. Evaluate them again on one corpus.",
                    )
    return list(found.values())
