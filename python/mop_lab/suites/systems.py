"""The systems that the tables compare: per method its rows, with their fields and its learning rate."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from mop_t5.attachment.method import MethodConfig
from mop_t5.methods import get, method_names

from mop_lab.suites import paper
from mop_lab.suites.starting_points import StartingPoints, systems_from

_PAPER: dict[str, Any] = {"preset": "paper"}


@dataclass(frozen=True)
class MethodSystems:
    """The systems of one method.

    Args:
        fields: Label of a system -> the fields that its method is attached with.
        learning_rate: Default learning rate, from the method's paper.
        separate: Labels of the systems that train one model per scenario.
        in_table_2: True if Table 2 has these systems by default. Baselines of other papers are not in Table 2.
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
    if any(field.default is MISSING and field.default_factory is MISSING for field in fields(config_class)):
        return MethodSystems()
    try:
        config_class.make({"scenarios": ["one"]})
    except ValueError:
        return MethodSystems()
    return MethodSystems({method: {}})


@dataclass(frozen=True)
class System:
    """A row of a table: a method with some fields, and its learning rate.

    Attributes:
        label: The label of the row. It names the folder of the runs.
        method: The name of the method.
        options: The fields that the method is attached with. One of them may be a FirstVersion.
        separate: Train one model per scenario, on the rows of this scenario alone.
        learning_rate: The highest learning rate.
        scored: True if the system is scored. False: it is trained only.
        fixed: True if options that the user gives to all systems do not change the options of this system.
    """

    label: str
    method: str
    options: dict[str, Any]
    separate: bool
    learning_rate: float
    scored: bool = True
    fixed: bool = False

    def config(self, scenarios: Sequence[str]) -> MethodConfig:
        """Return the config of the method. Raise ValueError or TypeError for a wrong field."""
        return get(self.method).Config.make({"scenarios": list(scenarios), **self.options})

    def with_options(self, options: Mapping[str, Any]) -> "System":
        """Return the system with those of the options that its method has. A fixed system keeps its own."""
        given = {name: value for name, value in options.items() if name in fields_of(self.method)}
        return replace(self, options=given | self.options if self.fixed else self.options | given)


def all_systems(starts: StartingPoints | None = None) -> dict[str, System]:
    """Return every system by its label.

    Args:
        starts: Starting points. With them, the systems that start from them are included.

    Returns:
        The systems by method, in the order of the paper. The paper's own rows come first.

    Raises:
        ValueError: Two methods name the same system.
    """
    found: dict[str, System] = {}
    for name in method_names():
        own, fixed = systems_of(name), {} if starts is None else systems_from(starts).get(name, {})
        for label, options in [*own.fields.items(), *fixed.items()]:
            if label in found:
                raise ValueError(
                    f"methods {found[label].method!r} and {name!r} both define the system {label!r}. Rename one."
                )
            separate = label in own.separate
            found[label] = System(label, name, dict(options), separate, own.learning_rate, fixed=label in fixed)
    printed = list(dict.fromkeys((*paper.TABLE_2, *paper.TABLE_3, *paper.CONTROLS)))
    ranked = sorted(found, key=lambda label: printed.index(label) if label in printed else len(printed))
    methods = list(dict.fromkeys(found[label].method for label in ranked))
    return {label: found[label] for label in sorted(ranked, key=lambda label: methods.index(found[label].method))}


def table_2_systems() -> list[str]:
    """Return the labels of Table 2. It leaves out baselines of other papers and the rows that only Table 3 has."""
    elsewhere = {*paper.TABLE_3, *paper.CONTROLS} - set(paper.TABLE_2)
    return [label for label, s in all_systems().items() if label not in elsewhere and systems_of(s.method).in_table_2]


def table_3_systems() -> list[str]:
    """Return the labels of Table 3: MOP, MOP without some of its parts, and controls."""
    known = all_systems()
    return [label for label in (*paper.TABLE_3, *paper.CONTROLS) if label in known]


def fields_of(method: str) -> set[str]:
    """Return the names of a method's fields, without the scenarios, which the corpus names."""
    return {f.name for f in fields(get(method).Config)} - {"scenarios"}


def check_options(options: Mapping[str, Any], systems: Iterable[System]) -> None:
    """Raise ValueError if an option is a field of none of the systems' methods."""
    methods = {system.label: system.method for system in systems}
    if nowhere := sorted(set(options) - set().union(*map(fields_of, methods.values()))):
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
    """Return the systems of some labels.

    Args:
        labels: The labels. None takes the default ones.
        default: The default labels.
        options: Fields in place of the systems' own. Each is given to the systems whose method has a field of its name.
        learning_rates: Learning rates by label, in place of the systems' own.
        known: The systems to choose from. The default is all systems without starting points.

    Raises:
        ValueError: A label is not known, no label or a repeated label is given, or no method has a field.
    """
    known = all_systems() if known is None else known
    for argument, given in (("systems", labels or ()), ("learning_rates", learning_rates or ())):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{argument} names {', '.join(unknown)}; known are {', '.join(known)}.")
    if labels is not None and (not labels or len(set(labels)) != len(labels)):
        raise ValueError(f"systems must name at least one system, each once; got {list(labels)}.")
    chosen = [known[label] for label in (default if labels is None else labels)]
    check_options(options or {}, chosen)
    rates = learning_rates or {}
    return [
        replace(system.with_options(options or {}), learning_rate=rates.get(system.label, system.learning_rate))
        for system in chosen
    ]
