"""The poster's comparisons of task-level mixtures of experts: choices in training, routers, and task vectors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any, NamedTuple

from mop_t5.checks import check_choice, check_number
from mop_t5.data import BATCHINGS
from mop_t5.evaluation import AVERAGE, Table
from mop_t5.methods.task_moe.routers import ROUTERS
from mop_t5.methods.task_moe.selection import SELECTIONS
from mop_t5.storage import task_vectors
from mop_t5.training import TrainingConfig

from mop_lab.suites.score_rows import Repetitions, average_of, average_relative_gain, scores_table
from mop_lab.suites.suite import trials_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System, check_options
from mop_lab.suites.trial import Inputs, Start, Trial

METHOD = "task_moe"
VANILLA = "vanilla"
_ROUTER = "linear_layer_specific"  # the method's own choice
_SET_HERE = {"selection", "router", "task_vectors", "train_task_vectors", "routes", "routes_from", "preset"}
_WORDS = {"speeds": ("one", "two"), "stages": ("one", "two"), "vectors": ("frozen", "trained")}
# label -> the method and its fields
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    VANILLA: ("fine_tuning", {}),
    "random 1": (METHOD, {"routes": "random_1"}),
    "random 2": (METHOD, {"routes": "random_2"}),
    "average": (METHOD, {"routes": "average"}),
    "random per instance": (METHOD, {"routes": "instance"}),
}


@dataclass(frozen=True)
class Factors:
    """The factors of the comparison, each with the values to try.

    Where a factor is not varied, its first value holds.

    Args:
        baselines: further rows: "vanilla", all weights of the plain backbone; "random 1" and "random 2", as many
            experts per task and layer, drawn once; "average"; "random per instance".
        selections: "softmax", "gumbel", "straight_through".
        batchings: "mixed" (heterogeneous batches) and "homogeneous".
        speeds: "two" (router and task vectors have their own learning rates) and "one".
        stages: "one" and "two". The second stage keeps the routes of the first, and its experts start anew.
        routers: names of routers.
        representations: files of `mop-t5 task-vectors` by a name for the table, beside "random".
        vectors: "trained" and "frozen" task vectors.
        learning_rate: learning rate of the experts and of the plain backbone.
        router_speed: factor on it for the router, at two speeds.
        vectors_speed: factor on it for the task vectors, at two speeds.
        stage_two_steps: steps of the second stage. The default is twice the steps of the first. Its temperature falls
            from 300 to 1 over 95 % of them.
    """

    baselines: list[str] = field(default_factory=lambda: [VANILLA, "random 1", "random 2", "average"])
    selections: list[str] = field(default_factory=lambda: list(SELECTIONS))
    batchings: list[str] = field(default_factory=lambda: ["mixed", "homogeneous"])
    speeds: list[str] = field(default_factory=lambda: ["two", "one"])
    stages: list[str] = field(default_factory=lambda: ["one", "two"])
    routers: list[str] = field(default_factory=lambda: sorted(ROUTERS, key=lambda name: name != _ROUTER))
    representations: dict[str, str] = field(default_factory=dict)
    vectors: list[str] = field(default_factory=lambda: ["trained", "frozen"])
    learning_rate: float = 1e-5
    router_speed: float = 100.0
    vectors_speed: float = 100.0
    stage_two_steps: int | None = None

    def __post_init__(self):
        known = {"baselines": tuple(BASELINES), "selections": SELECTIONS, "batchings": BATCHINGS, "routers": ROUTERS}
        for name, options in (known | _WORDS).items():
            values = getattr(self, name)
            for value in values:
                check_choice(name, value, options)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct; got {values}.")
            if not values and name != "baselines":
                raise ValueError(f"{name} must have at least one value; got none.")
        if "random" in self.representations:
            raise ValueError("representations has 'random', which is there without a file. Choose another name.")
        for name in ("learning_rate", "router_speed", "vectors_speed"):
            check_number(name, getattr(self, name), above=0)


class Combination(NamedTuple):
    """One value of each factor."""

    selection: str
    batching: str
    speeds: str
    stages: str
    router: str
    representation: str
    vectors: str

    @property
    def label(self) -> str:
        """The label of the row."""
        return (
            f"{self.selection}, {self.batching}, {self.speeds}-speed, {self.stages}-stage, {self.router}, "
            f"{self.representation} {self.vectors}"
        )


TABLES: dict[str, tuple[str, ...]] = {  # the factors that vary in each table
    "training": ("selection", "batching", "speeds", "stages"),
    "routers": ("router", "representation", "vectors"),
}


def combinations(factors: Factors, table: str) -> list[Combination]:
    """Return all combinations of the values of a table's factors."""
    of_training = (factors.selections, factors.batchings, factors.speeds, factors.stages)
    values = (*of_training, factors.routers, ["random", *factors.representations], factors.vectors)
    tried = [own if name in TABLES[table] else own[:1] for name, own in zip(Combination._fields, values)]
    return [Combination(*chosen) for chosen in itertools.product(*tried)]


class MixtureComparison:
    """The rows of the comparison, and its tables.

    Args:
        config: The corpus, the backbone, the output folder, the seeds, and how to score.
        training: How to train, except for the settings that the factors set.
        factors: The factors.
        tables: Names of tables.

    Raises:
        ValueError: A table is not known, the options name a field that the comparison sets, or no method has a field.
    """

    def __init__(self, config: SuiteConfig, training: TrainingConfig, factors: Factors, tables: Sequence[str]):
        for name in tables:
            check_choice("tables", name, tuple(TABLES))
        if taken := sorted(set(config.options) & _SET_HERE):
            raise ValueError(f"options names {', '.join(taken)}, which the comparison sets itself. Leave it out.")
        self._config, self._training, self._factors, self._inputs = config, training, factors, Inputs()
        self.combinations = {name: combinations(factors, name) for name in tables}

    def trials(self) -> list[Trial]:
        """Return the trials of the baselines and of all tables. A trial stands behind the trial that it starts from."""
        training = replace(self._training, batching=self._factors.batchings[0])
        rows = {label: self._row(label, *BASELINES[label], training) for label in self._factors.baselines}
        for one in dict.fromkeys(one for own in self.combinations.values() for one in own):
            first = one._replace(stages="one")
            if first.label not in rows:
                rows[first.label] = self._one_stage(first)
            if one.stages == "two":
                rows[one.label] = self._two_stages(one, rows[first.label])
        trials = [trial for own in rows.values() for trial in own]
        check_options(self._config.options, [trial.system for trial in trials])
        return trials

    def _one_stage(self, one: Combination) -> list[Trial]:
        factors, training = self._factors, replace(self._training, batching=one.batching)
        fields: dict[str, Any] = {"selection": one.selection, "router": one.router}
        fields["train_task_vectors"] = one.vectors == "trained"
        if one.representation != "random":
            path = str(factors.representations[one.representation])
            tasks = self._inputs.scenarios(replace(self._config, scenarios=None), "train")
            fields |= {"task_vectors": path, "d_task": task_vectors.read(path, tasks).shape[1]}
        speeds = {"router": factors.router_speed, "task_vectors": factors.vectors_speed} if one.speeds == "two" else {}
        if one.vectors != "trained":
            speeds.pop("task_vectors", None)
        return self._row(one.label, METHOD, fields, training, **speeds)

    def _two_stages(self, one: Combination, firsts: Sequence[Trial]) -> list[Trial]:
        """Return the second stages of a combination. `firsts` are the trials of its first stage, one per seed."""
        steps = self._factors.stage_two_steps or 2 * self._training.steps
        fields = {"selection": "softmax", "temperature": 300.0, "minimum_temperature": 1.0}
        fields["temperature_rate"] = math.log(300) / (0.95 * steps)
        trials = self._row(one.label, METHOD, fields, replace(self._training, batching=one.batching, steps=steps))
        return [replace(trial, start=Start("routes_from", first)) for trial, first in zip(trials, firsts)]

    def _row(
        self, label: str, method: str, fields: dict[str, Any], training: TrainingConfig, **group_rates: float
    ) -> list[Trial]:
        # --options do not replace the fields that the comparison sets
        system = System(label, method, fields, False, self._factors.learning_rate, fixed=True)
        config = replace(self._config, group_rates=group_rates)
        return trials_of([system.with_options(config.options)], config, training, self._inputs)

    def tables(self, name: str, scores: Mapping[str, Repetitions]) -> dict[str, Table]:
        """Return the tables of one name.

        Args:
            name: "training" or "routers".
            scores: label -> one result per seed.

        Returns:
            Ending of the file's name -> table: "", one row per combination; "-factors", the means over all rows that
            share a value of a factor; "-tasks", the score of each task.
        """
        factors, seeds = TABLES[name], len(self._config.seeds)
        numbers = ["average", *(["deviation"] if seeds > 1 else []), f"gain over {VANILLA}, %"]

        def row(label: str, names: Sequence[str]) -> list[object]:
            gain = average_relative_gain(scores[label], scores[VANILLA]) if VANILLA in scores else None
            spread = [stdev(100 * one[AVERAGE].mean for one in scores[label])] if seeds > 1 else []
            return [*names, average_of(scores[label]), *spread, gain]

        empty = [""] * (len(factors) - 1)
        rows = [row(label, [label, *empty]) for label in self._factors.baselines]
        rows += [row(one.label, [getattr(one, factor) for factor in factors]) for one in self.combinations[name]]
        formats = dict.fromkeys(numbers, ".2f") | {numbers[-1]: "+.2f"}
        what = self._config.how_scored(", their mean,")
        title = f"Task-level mixtures of experts, by {', '.join(factors)}. {what}"
        every = Table(title, [*factors, *numbers], rows, formats, labels=len(factors))
        return {"": every, "-factors": self._effects(name, scores), "-tasks": self._by_task(name, scores)}

    def _effects(self, name: str, scores: Mapping[str, Repetitions]) -> Table:
        """Return the effect of each value of a factor, on average over the other factors."""
        rows: list[list[object]] = []
        for factor in TABLES[name]:
            by_value: dict[str, list[float]] = {}
            for one in self.combinations[name]:
                by_value.setdefault(getattr(one, factor), []).append(average_of(scores[one.label]))
            first = mean(next(iter(by_value.values())))
            rows += [[factor, value, len(own), mean(own), mean(own) - first] for value, own in by_value.items()]
        columns = ["factor", "value", "rows", "average", "minus first value"]
        formats = {"average": ".2f", "minus first value": "+.2f"}
        return Table("Means over the rows that share a value", columns, rows, formats, labels=2)

    def _by_task(self, name: str, scores: Mapping[str, Repetitions]) -> Table:
        labels = [*self._factors.baselines, *(one.label for one in self.combinations[name])]
        return scores_table("Score of each task, mean x 100", ["row"], (([label], scores[label]) for label in labels))
