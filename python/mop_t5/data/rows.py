"""Ask many rows at once, in memory or on the disk: their scenarios, their checksum, and the rows of some scenarios."""

from collections.abc import Iterable, Sequence
from typing import cast, overload

from mop_t5.data.examples import Example, checksum_of_examples
from mop_t5.data.stored_examples import StoredExamples


def scenarios_of(examples: Iterable[Example]) -> list[str]:
    """Return the distinct scenarios, sorted. Therefore scenario ids do not depend on the order of the rows."""
    if isinstance(examples, StoredExamples):
        return examples.scenarios
    return sorted({example.scenario for example in examples})


def checksum_of(examples: Iterable[Example]) -> str:
    """Return a checksum of scenario, dialogue, summary and references of rows in their order.

    Neither the format of the file nor the ids count, because ids are for people.
    """
    return examples.checksum if isinstance(examples, StoredExamples) else checksum_of_examples(examples)


@overload
def of_scenarios(examples: StoredExamples, scenarios: Sequence[str] | None) -> StoredExamples: ...  # type: ignore[overload-overlap]
@overload
def of_scenarios(examples: Sequence[Example], scenarios: Sequence[str] | None) -> list[Example]: ...
def of_scenarios(examples: Sequence[Example], scenarios: Sequence[str] | None) -> Sequence[Example]:
    """Return the rows of some scenarios: a list, or StoredExamples of StoredExamples.

    Args:
        examples: The rows.
        scenarios: Names of the scenarios. None for all rows.

    Raises:
        ValueError: A scenario has no row.
    """
    missing = sorted(set(scenarios or ()) - set(scenarios_of(examples)))
    if missing:
        raise ValueError(
            f"scenarios names {', '.join(missing)}, which have no rows; scenarios with rows are "
            f"{', '.join(scenarios_of(examples))}."
        )
    if isinstance(examples, StoredExamples):
        return examples if scenarios is None else examples.of_scenarios(scenarios)
    return [example for example in examples if scenarios is None or example.scenario in scenarios]


def scenario_ids_of(examples: Sequence[Example], scenarios: Sequence[str]) -> Sequence[int]:
    """Return the position of every example's scenario in `scenarios`. An array of int64 for StoredExamples.

    Raises:
        ValueError: A scenario is not in `scenarios`.
    """
    check_scenarios(examples, scenarios)
    if isinstance(examples, StoredExamples):
        return cast(Sequence[int], examples.positions(scenarios))
    position = {name: i for i, name in enumerate(scenarios)}
    return [position[example.scenario] for example in examples]


def check_scenarios(examples: Sequence[Example], scenarios: Sequence[str]) -> None:
    """Raise ValueError if an example has a scenario that is not in `scenarios`."""
    if unknown := set(scenarios_of(examples)) - set(scenarios):
        example = next(example for example in examples if example.scenario in unknown)
        raise ValueError(
            f"example {example.id!r} is of scenario {example.scenario!r}; known are {', '.join(scenarios)}. "
            "Train with this scenario in the corpus, or take the row out."
        )
