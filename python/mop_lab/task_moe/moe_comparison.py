"""The poster's comparisons of task-level mixtures of experts: what matters in training, which router, which vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any, NamedTuple

from mop_t5.checks import check_choice, check_number
from mop_t5.data import BATCHINGS, read_split, scenarios_of
from mop_t5.evaluation import AVERAGE, Table
from mop_t5.methods.task_moe.routers import ROUTERS
from mop_t5.methods.task_moe.selection import SELECTIONS
from mop_t5.storage import task_vectors
from mop_t5.training import TrainingConfig

from mop_lab.suites.rows import Row, Start, average_relative_gain, means_of
from mop_lab.suites.score_rows import Repetitions, average_of, score_rows
from mop_lab.suites.suite import SuiteConfig
from mop_lab.suites.systems import System

METHOD = "task_moe"
VANILLA = "vanilla"
_ROUTER = "linear_layer_specific"  # the method's own choice
_VARIED = {"selection", "router", "task_vectors", "train_task_vectors", "routes", "routes_from", "preset"}
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
class MoEGrid:
    """The factors of the comparison, each with the values to try. Where one is not varied its first value holds.

    Args:
        baselines: what else is trained: "vanilla", all weights of the plain backbone; "random 1" and "random 2", as
            many experts a task and layer, drawn once; "average"; "random per instance".
        selections: "softmax", "gumbel", "straight_through".
        batchings: "mixed" (heterogeneous batches) and "homogeneous".
        speeds: "two" (router and task vectors at rates of their own) and "one".
        stages: "one" and "two"; in the second stage the routes of the first are kept, and experts start anew.
        routers: names of routers.
        representations: files of `mop-t5 task-vectors` by a name for the table, beside "random".
        vectors: "trained" and "frozen" task vectors.
        learning_rate: of the experts and of the plain backbone.
        router_speed: factor on it for the router, at two speeds.
        vectors_speed: factor on it for the task vectors, at two speeds.
        stage_two_steps: steps of the second stage; twice those of the first if not given. Its temperature falls from
            300 to 1 over 95 % of them.
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
            for value in getattr(self, name):
                check_choice(name, value, options)
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} must be distinct; got {getattr(self, name)}.")
            if not getattr(self, name) and name != "baselines":
                raise ValueError(f"{name} must have at least one value; got none.")
        if "random" in self.representations:
            raise ValueError("representations has 'random', which is there without a file. Choose another name.")
        for name in ("learning_rate", "router_speed", "vectors_speed"):
            check_number(name, getattr(self, name), above=0)


class Cell(NamedTuple):
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
        return (
            f"{self.selection}, {self.batching}, {self.speeds}-speed, {self.stages}-stage, {self.router}, "
            f"{self.representation} {self.vectors}"
        )


TABLES: dict[str, tuple[str, ...]] = {  # the factors that vary in each
    "training": ("selection", "batching", "speeds", "stages"),
    "routers": ("router", "representation", "vectors"),
}


def cells(grid: MoEGrid, table: str) -> list[Cell]:
    """All combinations of the values of a table's factors."""
    values = {
        "selection": grid.selections,
        "batching": grid.batchings,
        "speeds": grid.speeds,
        "stages": grid.stages,
        "router": grid.routers,
        "representation": ["random", *grid.representations],
        "vectors": grid.vectors,
    }
    tried = [values[name] if name in TABLES[table] else values[name][:1] for name in Cell._fields]
    return [Cell(*chosen) for chosen in itertools.product(*tried)]


class Comparison:
    """The rows of the comparison. training: but for what the grid sets."""

    def __init__(self, config: SuiteConfig, training: TrainingConfig, grid: MoEGrid, tables: Sequence[str]):
        for name in tables:
            check_choice("tables", name, tuple(TABLES))
        varied = sorted(set(config.options) & _VARIED)
        if varied:
            raise ValueError(f"options names {', '.join(varied)}, which the comparison sets itself. Leave it out.")
        self._config, self._training, self._grid = config, training, grid
        self.cells = {name: cells(grid, name) for name in tables}
        self._widths = {}
        if any(cell.representation != "random" for own in self.cells.values() for cell in own):
            names = scenarios_of(read_split(config.corpus, "train"))
            self._widths = {n: task_vectors.read(p, names).shape[1] for n, p in grid.representations.items()}

    def rows(self) -> list[Row]:
        """Those of the baselines and of all tables, each once, behind the one that it starts from."""
        rows = {label: self._baseline(label) for label in self._grid.baselines}
        for cell in dict.fromkeys(cell for own in self.cells.values() for cell in own):
            row = self._row(cell)
            if row.start is not None:
                rows.setdefault(row.start.row.label, row.start.row)
            rows.setdefault(row.label, row)
        return list(rows.values())

    def _baseline(self, label: str) -> Row:
        method, fields = BASELINES[label]
        return self._made(label, method, fields, replace(self._training, batching=self._grid.batchings[0]), {})

    def _row(self, cell: Cell) -> Row:
        grid = self._grid
        fields: dict[str, Any] = {"selection": cell.selection, "router": cell.router}
        fields["train_task_vectors"] = cell.vectors == "trained"
        if cell.representation != "random":
            fields["task_vectors"] = str(grid.representations[cell.representation])
            fields["d_task"] = self._widths[cell.representation]
        rates = {}
        if cell.speeds == "two":
            rates = {"router": grid.router_speed}
            rates |= {"task_vectors": grid.vectors_speed} if cell.vectors == "trained" else {}
        training = replace(self._training, batching=cell.batching)
        if cell.stages == "one":
            return self._made(cell.label, METHOD, fields, training, rates)
        steps = grid.stage_two_steps or 2 * training.steps
        second = {"selection": "softmax", "temperature": 300.0, "minimum_temperature": 1.0}
        second["temperature_rate"] = math.log(300) / (0.95 * steps)
        first = Start("routes_from", self._row(cell._replace(stages="one")))
        return self._made(cell.label, METHOD, second, replace(training, steps=steps), {}, first)

    def _made(self, label, method: str, fields: dict, training: TrainingConfig, rates, start=None) -> Row:
        # fields that the comparison sets are not replaced by --options
        system = System(label, method, fields, False, self._grid.learning_rate, fixed=True)
        return Row(system, replace(self._config, group_rates=rates), training, start)

    def tables(self, name: str, what: str, scores: Mapping[str, Repetitions]) -> dict[str, Table]:
        """By the end of its file's name: the rows of one table; "-factors", the mean over all rows that share a value
        of a factor; "-tasks", the score of each task. what: how was scored; scores: label -> one result a seed."""
        factors, seeds = TABLES[name], len(self._config.seeds)
        numbers = ["average", *(["deviation"] if seeds > 1 else []), f"gain over {VANILLA}, %"]
        baseline = means_of(scores[VANILLA]) if VANILLA in scores else None

        def row(label: str, names: Sequence[str]) -> list:
            gain = None if baseline is None else average_relative_gain(means_of(scores[label]), baseline)
            spread = [stdev(100 * one[AVERAGE].mean for one in scores[label])] if seeds > 1 else []
            return [*names, average_of(scores[label], AVERAGE), *spread, None if gain is None else 100 * gain]

        empty = [""] * (len(factors) - 1)
        rows = [row(label, [label, *empty]) for label in self._grid.baselines]
        rows += [row(cell.label, [getattr(cell, factor) for factor in factors]) for cell in self.cells[name]]
        formats = dict.fromkeys(numbers, ".2f") | {numbers[-1]: "+.2f"}
        title = f"Task-level mixtures of experts, by {', '.join(factors)}. {what}"
        every = Table(title, [*factors, *numbers], rows, formats, labels=len(factors))
        return {"": every, "-factors": self._effects(name, scores), "-tasks": self._by_task(name, scores)}

    def _effects(self, name: str, scores: Mapping[str, Repetitions]) -> Table:
        """What the choice of one factor is worth on average over the others."""
        rows: list[list[object]] = []
        for factor in TABLES[name]:
            by_value: dict[str, list[float]] = {}
            for cell in self.cells[name]:
                by_value.setdefault(getattr(cell, factor), []).append(average_of(scores[cell.label], AVERAGE))
            first = mean(next(iter(by_value.values())))
            rows += [[factor, value, len(own), mean(own), mean(own) - first] for value, own in by_value.items()]
        columns = ["factor", "value", "rows", "average", "minus first value"]
        formats = {"average": ".2f", "minus first value": "+.2f"}
        return Table("Means over the rows that share a value", columns, rows, formats, labels=2)

    def _by_task(self, name: str, scores: Mapping[str, Repetitions]) -> Table:
        labels = [*self._grid.baselines, *(cell.label for cell in self.cells[name])]
        columns = list(scores[labels[0]][0])
        rows = [row for label in labels for row in score_rows([label], scores[label], columns)]
        title = "Score of each task, mean x 100"
        return Table(title, ["row", "quantity", *columns], rows, dict.fromkeys(columns, ".2f"), labels=2)
