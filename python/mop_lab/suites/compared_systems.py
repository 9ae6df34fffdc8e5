"""The systems that `mop-t5 compare` trains, their variants, and the choice of their learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mop_t5.checks import check_int

from mop_lab.suites import paper
from mop_lab.suites.systems import System, all_systems, check_options

FROZEN = "frozen backbone"
_SIZES = ("HyperFormer++ (published)", "HyperPrefix (small)", "Compacter++")  # other sizes of a method


def known_systems(variants: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, System]:
    """Return the frozen backbone, all systems, and variants of them. Raise ValueError for a wrong variant."""
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
        check_options(changed, [known[base]])
        own[label] = replace(known[base], label=label, options=known[base].options | changed, fixed=True)
    return known | own


def default_systems(variants: Sequence[str] = ()) -> list[str]:
    """Return the labels of all systems, without the ablations of Table 3 and without other sizes of a method."""
    left_out = {*paper.TABLE_3, *paper.CONTROLS, *_SIZES} - {paper.WHOLE}
    return [label for label in (*known_systems(), *variants) if label not in left_out]


@dataclass(frozen=True)
class CompareConfig:
    """How learning rates are chosen, and the system that the others are compared with.

    Args:
        rates: learning rates to try with each system and the first seed. The rate with the best mean score on the valid
            split is taken. Without rates, each system has its own, or the one of --learning_rates.
        rate_steps: steps of these trials. The default is the steps of the runs.
        reference: the system that the others are compared with.
        variants: further systems by label. Each is another system with some fields changed, such as '{MOP from zero:
            {system: MOP, init: zero_up}}'. They are rows if --systems is not given.
        resamples: number of resamples of the paired bootstrap.
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
