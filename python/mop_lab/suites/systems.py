"""The systems that the tables compare: per method its rows, with their fields and its learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from mop_t5.attachment.method import MethodConfig
from mop_t5.methods import get, method_names

from mop_lab.suites import paper
from mop_lab.suites.starting_points import FirstVersion, StartingPoints, systems_from

_PAPER: dict[str, Any] = {"preset": "paper"}


@dataclass(frozen=True)
class MethodSystems:
    """The systems of one method.

    Args:
        fields: Label of a system -> the fields that its method is attached with.
        learning_rate: Default learning rate, from the method's paper.
        separate: Labels of the systems that train one model per scenario.
        in_table_2: Whether Table 2 has these systems by default. Baselines of other papers are not in Table 2.
    """

    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    learning_rate: float = 5e-4
    separate: tuple[str, ...] = ()
    in_table_2: bool = True


# Add an entry for a method of your own to give it several systems or another learning rate; see systems_of.
SYSTEMS: dict[str, MethodSystems] = {
    "adapter": MethodSystems(
        {"Adapter": {}, "Adapter-m": {}, "AdapterDrop": {"drop_layers": 5}, "AdapterDrop-m": {"drop_layers": 5}},
        learning_rate=3e-4,
        separate=("Adapter", "AdapterDrop"),
        in_table_2=False,
    ),
    "attempt": MethodSystems(
        # the other systems of ATTEMPT need source prompts: see starting_points.systems_from
        {"ATTEMPT (6 untrained sources)": {"untrained_sources": 6}},
        learning_rate=0.3,
        in_table_2=False,
    ),
    "bitfit": MethodSystems({"BitFit": {}, "BitFit-m": {}}, learning_rate=3e-4, separate=("BitFit",), in_table_2=False),
    "compacter": MethodSystems({"Compacter": {}, "Compacter++": {"variant": "plus_plus"}}, learning_rate=3e-3),
    "fine_tuning": MethodSystems(
        {"MTL-vanilla": {}, "MTL": {"templates": "default"}, "fine-tuning per scenario": {}},
        learning_rate=5e-5,
        separate=("fine-tuning per scenario",),
    ),
    "hyper_prefix": MethodSystems({"HyperPrefix": {"preset": "matched"}, "HyperPrefix (small)": {"preset": "small"}}),
    "hyperformer": MethodSystems(
        {"HyperFormer++": {"preset": "table4"}, "HyperFormer++ (published)": {"preset": "published"}},
        learning_rate=3e-4,
    ),
    "mop": MethodSystems(
        {
            "MOP": _PAPER,
            "MOP w/o low-rank": {**_PAPER, "rule": "full"},
            "MOP w/o LoRL": {**_PAPER, "share_lorl": False},
            "MOP w/o LoRE": {**_PAPER, "share_lore": False},
            "MOP w/o both": {**_PAPER, "share_lorl": False, "share_lore": False},
            "MOP dense experts": {**_PAPER, "rule": "dense"},
            "MOP one shared expert": {**_PAPER, "num_experts": 1},
            "MOP (X-MoE top-2)": {"preset": "xmoe_top2"},
        }
    ),
    "prefix_tuning": MethodSystems({"prefix-tuning": {}}),
    "prompt_tuning": MethodSystems({"prompt-tuning": {}}, learning_rate=0.3),
    "task_moe": MethodSystems({"Task-level MoE": {}}, learning_rate=1e-5, in_table_2=False),
}


def systems_of(method: str) -> MethodSystems:
    """Return the systems of a method.

    A method without an entry in SYSTEMS has one system of its own name, with its default fields and the default
    learning rate. It has no system if its config needs further fields than the scenarios.
    """
    if method in SYSTEMS:
        return SYSTEMS[method]
    config_class = get(method).Config
    try:
        config_class.make({"scenarios": ["one"]})
    except (TypeError, ValueError):
        return MethodSystems()
    return MethodSystems({method: {}})


@dataclass(frozen=True)
class System:
    """label: its row. options: the fields that its method is attached with; one may be a FirstVersion. separate:
    trained once a scenario, on the rows of this scenario alone. scored: or only trained. fixed: options that are given
    to all systems do not replace its own."""

    label: str
    method: str
    options: dict[str, Any]
    separate: bool
    learning_rate: float
    scored: bool = True
    fixed: bool = False

    @property
    def first(self) -> First | None:
        """What is trained before it, if one of its fields is a FirstVersion."""
        for name, value in self.options.items():
            if isinstance(value, FirstVersion):
                label = f"{self.label}, first version"
                return First(name, replace(self, label=label, options=value.fields, scored=False), value.steps)
        return None

    def config(self, scenarios: Sequence[str]) -> MethodConfig:
        """The config of its method. Raises what the method has against its options."""
        return get(self.method).Config.make({"scenarios": list(scenarios), **self.options})


class First(NamedTuple):
    """field: of a system, that starts from the adapter which `system` trains in `steps`."""

    field: str
    system: System
    steps: int


def all_systems(starts: StartingPoints | None = None) -> dict[str, System]:
    """Every system by its label: by method, in the order in which the paper names them, its own rows first. With
    `starts` also those that start from them."""
    found: dict[str, System] = {}
    for name in method_names():
        own, fixed = systems_of(name), {} if starts is None else systems_from(starts).get(name, {})
        for label, options in [*own.fields.items(), *fixed.items()]:
            if label in found:
                raise ValueError(f"the system {label!r} is named by the methods {found[label].method!r} and {name!r}.")
            separate = label in own.separate
            found[label] = System(label, name, dict(options), separate, own.learning_rate, fixed=label in fixed)
    printed = list(dict.fromkeys((*paper.TABLE_2, *paper.TABLE_3, *paper.CONTROLS)))
    place = {label: printed.index(label) if label in printed else len(printed) for label in found}
    first = {
        name: min(place[label] for label in found if found[label].method == name)
        for name in {s.method for s in found.values()}
    }
    return dict(sorted(found.items(), key=lambda item: (first[item[1].method], item[1].method, place[item[0]])))


def table_2_systems() -> list[str]:
    """Labels of Table 2: all but baselines of other papers, and ablations and controls that stand in Table 3 only."""
    elsewhere = {*paper.TABLE_3, *paper.CONTROLS} - set(paper.TABLE_2)
    return [label for label, s in all_systems().items() if label not in elsewhere and systems_of(s.method).in_table_2]


def table_3_systems() -> list[str]:
    """Labels of Table 3: MOP, what is left without its parts, and controls."""
    known = all_systems()
    return [label for label in (*paper.TABLE_3, *paper.CONTROLS) if label in known]


def fields_of(method: str) -> set[str]:
    """The names of its fields, but for the scenarios, which are the corpus's."""
    return {f.name for f in fields(get(method).Config)} - {"scenarios"}


def check_options(options: Mapping[str, Any], methods: Mapping[str, str]) -> None:
    """Raise ValueError for options that are a field of none of the methods. methods: of rows, by their labels."""
    nowhere = sorted(set(options) - set().union(*map(fields_of, methods.values())))
    if nowhere:
        raise ValueError(
            f"options names {', '.join(nowhere)}, which is no field of the methods of {', '.join(methods)}. "
            "`mop-t5 train --help` explains the fields of every method."
        )


def choose(
    labels: Sequence[str] | None,
    default: Sequence[str],
    options: Mapping[str, Any] | None = None,
    learning_rates: Mapping[str, float] | None = None,
    known: Mapping[str, System] | None = None,
) -> list[System]:
    """The systems of these labels (default: those of `default`) out of `known` (default: all that need no starting
    points), with other rates and with `options` in place of their own: each is given to the methods that have a field
    of its name. Raises ValueError for a label that is not known, for a field that no method has, and for an empty or
    repeated choice."""
    known = all_systems() if known is None else known
    for argument, given in (("systems", labels or ()), ("learning_rates", learning_rates or ())):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"{argument} names {', '.join(unknown)}; known are {', '.join(known)}.")
    if labels is not None and (not labels or len(set(labels)) != len(labels)):
        raise ValueError(f"systems must name at least one system, each once; got {list(labels)}.")
    chosen = [known[label] for label in (default if labels is None else labels)]
    check_options(options or {}, {system.label: system.method for system in chosen})
    made = []
    for system in chosen:
        given = {name: value for name, value in (options or {}).items() if name in fields_of(system.method)}
        merged = given | system.options if system.fixed else system.options | given
        rate = (learning_rates or {}).get(system.label, system.learning_rate)
        made.append(replace(system, options=merged, learning_rate=rate))
    return made
