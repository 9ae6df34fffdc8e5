"""What `mop-t5 compare` trains: the systems and their variants, and the grid of their rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mop_t5.checks import check_int

from mop_lab.suites import paper
from mop_lab.suites.systems import System, all_systems, check_options

FROZEN = "frozen backbone"
_SIZES = ("HyperFormer++ (published)", "HyperPrefix (small)", "Compacter++")  # other sizes of a method


def known_systems(variants: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, System]:
    """The backbone as it is, those of the registry, and variants of them; ValueError for a variant of none of them."""
    frozen = System(FROZEN, "prompt_tuning", {"prefix_length": 0}, False, 1e-3, fixed=True)
    known = {FROZEN: frozen, **all_systems()}
    own = {}
    for label, fields in (variants or {}).items():
        base = fields.get("system")
        if base not in known or base == FROZEN or label in known:
            raise ValueError(
                f"variants: {label!r} must be a new label, with `system: LABEL` of another system and the fields that "
                f"differ; got {dict(fields)}. Systems are {', '.join(known)}."
            )
        changed = {name: value for name, value in fields.items() if name != "system"}
        check_options(changed, {label: known[base].method})
        own[label] = replace(known[base], label=label, options=known[base].options | changed, fixed=True)
    return known | own


def default_systems(variants: Sequence[str] = ()) -> list[str]:
    """All but the ablations, which are Table 3, and other sizes of the same method."""
    left_out = {*paper.TABLE_3, *paper.CONTROLS, *_SIZES} - {paper.WHOLE}
    return [label for label in (*known_systems(), *variants) if label not in left_out]


@dataclass(frozen=True)
class Grid:
    """How rates are chosen, and what the systems are compared with.

    Args:
        rates: learning rates to try with each system and the first seed; the one with the best mean score on the valid
            split is taken. Without any each system has its own, or that of --learning_rates.
        rate_steps: steps of these trials; those of the runs if not given.
        reference: the system that the others are compared with.
        variants: further systems by their labels, each another one with some fields changed, such as '{MOP from zero:
            {system: MOP, init: zero_up}}'. They are rows where --systems names none.
        resamples: of the paired bootstrap.
    """

    rates: list[float] = field(default_factory=list)
    rate_steps: int | None = None
    reference: str = paper.WHOLE
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    resamples: int = 10_000

    def __post_init__(self):
        if len(set(self.rates)) != len(self.rates) or not all(rate > 0 for rate in self.rates):
            raise ValueError(f"rates must be different numbers above 0, got {self.rates}.")
        if self.rate_steps is not None:
            check_int("rate_steps", self.rate_steps, 1)
        check_int("resamples", self.resamples, 1)
