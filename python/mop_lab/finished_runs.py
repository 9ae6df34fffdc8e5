"""Find the evaluated runs under folders, grouped by system and seed. Nothing is written.

The runs may come from `mop-t5 train` and `evaluate`, from a table or from a suite.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mop_t5.attachment.attached_model import attached, is_attached
from mop_t5.attachment.method import Method
from mop_t5.data import Example, TaskMetrics
from mop_t5.evaluation import AVERAGE, SCORES, Rouge, Scorer, TaskScores, read_scores, with_average
from mop_t5.evaluation.run_evaluation import ALL_WEIGHTS, evaluation_folder
from mop_t5.evaluation.scores import PREDICTIONS, read_predictions
from mop_t5.files import damage_in_a_sentence, read_json
from mop_t5.operations import contents
from mop_t5.operations.run_folder import SETTINGS, content_of_weights, read_settings
from transformers import PreTrainedModel

SYSTEM = "system.json"  # in the folder of a system: its label and its parameters
_SCORING = ("num_beams", "implementation", "unit")
_T = TypeVar("_T")
MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True)
class FinishedRun:
    """One training and its evaluation on a split.

    Args:
        folder: The run folder.
        split: The split that was scored.
    """

    folder: Path
    split: str

    @property
    def evaluation(self) -> Path:
        """Return the folder of the evaluation."""
        return evaluation_folder(self.folder, self.split)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return run.json: the configuration with every default filled in."""
        return read_settings(self.folder)

    @property
    def method(self) -> str:
        """Return the name of the method, as scores.json and predictions.jsonl have it."""
        return self.settings.get("method") or ALL_WEIGHTS

    @property
    def seed(self) -> int:
        """Return the seed of the training. Raise ValueError if run.json has none."""
        if "seed" not in self.settings:
            raise ValueError(f"{self.folder / SETTINGS} is damaged: it names no seed. Copy it again, or train anew.")
        return self.settings["seed"]

    @property
    def is_documented(self) -> bool:
        """Return whether the evaluation has run.json and the predictions beside its scores."""
        return all((self.evaluation / name).is_file() for name in (SETTINGS, PREDICTIONS))

    @cached_property
    def scoring(self) -> dict[str, Any]:
        """Return run.json of the evaluation.

        It has corpus, split, num_beams, implementation, unit and normalise, and metrics if tasks have their own.

        Raises:
            ValueError: The file lacks a setting of the search or of ROUGE.
        """
        settings = read_settings(self.evaluation)
        if missing := [name for name in _SCORING if name not in settings]:
            raise ValueError(
                f"{self.evaluation / SETTINGS} is damaged: it has no {', '.join(missing)}. Evaluate again with "
                "--overwrite."
            )
        return settings

    @property
    def scorer(self) -> Scorer:
        """Return the scorer of the evaluation.

        The metrics of the tasks are those of the evaluation, because tasks.yaml of the corpus may have changed since.
        """
        how = self.scoring
        with damage_in_a_sentence(self.evaluation / SETTINGS, "Evaluate again with --overwrite."):
            tasks = {name: TaskMetrics(**task) for name, task in (how.get("metrics") or {}).items()}
            return Scorer(Rouge(how["implementation"], how["unit"], how["normalise"]), tasks)

    @cached_property
    def made_of(self) -> dict[str, contents.Content] | None:
        """Return the contents that were scored: the rows of the split, and the training.

        An evaluation by an earlier version did not record its contents. Its rows are read from the predictions, and its
        training is unknown. None if there are no predictions either.
        """
        recorded = contents.read_contents(self.evaluation)
        if recorded is not None or not self.is_documented:
            return recorded
        return {self.split: contents.of_rows([example for example, _ in read_predictions(self.evaluation)])}

    def check_is_of_its_weights(self) -> None:
        """Raise ValueError if the run is known to have been trained on since its evaluation."""
        recorded = contents.read_contents(self.evaluation)
        if recorded is not None and contents.changes(recorded, content_of_weights(self.folder)):
            raise ValueError(
                f"{self.evaluation} was made before {self.folder} was trained on, so its scores are of other weights. "
                "Evaluate again with --overwrite."
            )

    def scores(self) -> dict[str, TaskScores]:
        """Return scenario -> scores, with the average last. Raise ValueError if the file lacks the run's method."""
        return self._own(read_scores(self.evaluation), SCORES)

    def baselines(self) -> dict[str, dict[str, TaskScores]]:
        """Return the baselines that were scored with the run: baseline -> scenario -> scores."""
        return {name: means for name, means in read_scores(self.evaluation).items() if name != self.method}

    def predictions(self) -> list[tuple[Example, str]]:
        """Return each row of the split with the text of the run.

        Raises:
            FileNotFoundError: There are no predictions.
            ValueError: The file is damaged, or lacks the run's method.
        """
        return [(example, self._own(texts, PREDICTIONS)) for example, texts in read_predictions(self.evaluation)]

    def _own(self, systems: Mapping[str, _T], file: str) -> _T:
        if self.method not in systems:
            raise ValueError(
                f"{self.evaluation / file} has nothing of {self.method!r}, the method of its run; it has "
                f"{', '.join(map(repr, systems)) or 'nothing'}. Evaluate again with --overwrite."
            )
        return systems[self.method]


@dataclass(frozen=True)
class FinishedSystem:
    """One row of a table: a system and its finished runs.

    Args:
        label: The name of the system. No two systems share one.
        method: The method of the system.
        trained: Trained parameters. 0 if no suite has counted them.
        backbone: Parameters of the backbone. 0 if no suite has counted them.
        folder: The given folder in which the system was found, or the output folder of its suite.
        seeds: seed -> its run, or its runs if each scenario has its own.
    """

    label: str
    method: str
    trained: int
    backbone: int
    folder: str
    seeds: dict[int, list[FinishedRun]]

    @property
    def runs(self) -> list[FinishedRun]:
        """Return the runs of all seeds."""
        return [run for runs in self.seeds.values() for run in runs]

    @property
    def share(self) -> float:
        """Return the trained parameters in % of the backbone's. The parameters must be counted."""
        return 100 * self.trained / self.backbone

    @cached_property
    def scores(self) -> dict[int, dict[str, TaskScores]]:
        """Return seed -> scenario -> scores, with the average last."""
        return {
            seed: with_average({name: scores for run in runs for name, scores in run.scores().items()})
            for seed, runs in self.seeds.items()
        }

    @property
    def averages(self) -> list[float]:
        """Return the average of each seed over scenarios and metrics, times 100."""
        return [100 * scores[AVERAGE].mean for scores in self.scores.values()]

    def predictions(self, seed: int) -> list[tuple[Example, str]]:
        """Return each row of the split with the text of the system, in order of scenarios and ids."""
        rows = [row for run in self.seeds[seed] for row in run.predictions()]
        return sorted(rows, key=lambda row: (row[0].scenario, row[0].id or "", row[0].dialogue))


def scored_folders(folder: str | Path, split: str) -> list[Path]:
    """Return the run folders in or under a folder that have scores of a split. Raise FileNotFoundError if missing."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder. Give one that `mop-t5 train` or `mop-t5 table` wrote.")
    return sorted(path.parent.parent for path in Path(folder).rglob(f"evaluation-{split}/{SCORES}"))


def finished_systems(folders: Sequence[str | Path], split: str = "test") -> list[FinishedSystem]:
    """Return the systems with evaluated runs in or under these folders, in order of the folders' names.

    A run belongs to the system whose system.json lies above the run. A run without one is a system of its own, named by
    the folders that lead to the run. Systems of equal labels get a folder behind the label, so that no two systems
    share a label. A seed counts if all its runs are evaluated.

    Args:
        folders: Output folders of suites, or folders of runs.
        split: The split that was scored.

    Raises:
        FileNotFoundError: A folder does not exist, or has no evaluation of the split.
        ValueError: No folder is given, or a run is damaged.
    """
    if not folders:
        raise ValueError("no folders are given. Name at least one that `mop-t5 train` or `mop-t5 table` wrote.")
    found: dict[Path, tuple[str, list[FinishedRun]]] = {}  # folder of a system -> a given folder, and its runs
    for name in map(str, folders):
        folder = Path(name)
        scored = scored_folders(folder, split)
        if not scored:
            raise FileNotFoundError(
                f"{folder} holds no run that was evaluated on the {split} split. Run `mop-t5 evaluate` first."
            )
        for path in scored:
            run = FinishedRun(path, split)
            run.check_is_of_its_weights()
            several = path.name.startswith("seed-") and (path.parent / SETTINGS).is_file()
            key = system_folder(path) or (path.parent if several else path)
            _, runs = found.get(key, ("", []))
            found[key] = name, runs if run in runs else [*runs, run]
    systems = {key: _system(key, *own) for key, own in found.items()}
    finished = {key: system for key, system in systems.items() if system.seeds}
    if not finished:
        raise FileNotFoundError(f"no seed has all its runs evaluated in {', '.join(map(str, folders))}.")
    return list(_distinct_labels(finished))


def system_folder(run: Path) -> Path | None:
    """Return the nearest folder above a run folder that has a system.json. None without one."""
    return next((folder for folder in run.parents if (folder / SYSTEM).is_file()), None)


def read_system(folder: Path) -> dict[str, Any]:
    """Return system.json of a folder. Raise ValueError if the file is damaged."""
    cure = "Remove it, and the suite writes it again."
    known = read_json(folder / SYSTEM, cure)
    if not isinstance(known.get("label"), str):
        raise ValueError(f"{folder / SYSTEM} is damaged: it names no label. {cure}")
    return known


def suite_baselines(folder: str | Path, split: str) -> dict[str, dict[str, TaskScores]]:
    """Return the baselines that a suite has scored on a split: baseline -> scenario -> scores, the average last.

    Args:
        folder: The output folder of the suite.
        split: The split. Baselines of another split are left out.
    """
    place = Path(folder) / "floors"
    scored = (place / SCORES).is_file() and read_settings(place).get("split") == split
    return read_scores(place) if scored else {}


def _system(folder: Path, given: str, runs: Sequence[FinishedRun]) -> FinishedSystem:
    known: dict[str, Any] = read_system(folder) if (folder / SYSTEM).is_file() else {"label": _name(folder, given)}
    seeds: dict[int, list[FinishedRun]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    whole = {seed: seeds[seed] for seed in sorted(seeds) if len(seeds[seed]) >= known.get("runs", 1)}
    trained, backbone = (known.get(name) or 0 for name in ("trained", "backbone"))
    return FinishedSystem(known["label"], runs[0].method, trained, backbone, given, whole)


def _distinct_labels(systems: Mapping[Path, FinishedSystem]) -> Iterator[FinishedSystem]:
    """Yield the systems. Add a folder to equal labels: the given folder, or the system's if that holds several."""
    labels = Counter(system.label for system in systems.values())
    in_folder = Counter((system.label, system.folder) for system in systems.values())
    for key, system in systems.items():
        where = Path(system.folder) if in_folder[system.label, system.folder] == 1 else key
        yield replace(system, label=f"{system.label} ({where})") if labels[system.label] > 1 else system


def _name(path: Path, given: str) -> str:
    inside = path != Path(given) and path.is_relative_to(given)  # a run of several seeds is above a given seed
    return str(path.relative_to(given)) if inside else path.resolve().name


def method_of_run(model: PreTrainedModel, kind: type[MethodT], lacking: str) -> MethodT:
    """Return the attached method of a run's model.

    Args:
        model: The model, as load_run returns it.
        kind: The class that the method must have.
        lacking: What models without it lack, for the message.

    Raises:
        ValueError: The model is a plain backbone, or has another method.
    """
    method = attached(model).mop if is_attached(model) else None
    if isinstance(method, kind):
        return method
    name = "a plain backbone" if method is None else f"the method {method.name!r}"
    raise ValueError(f"run has {name}, which has {lacking}. Give a run of `{kind.name}`.")
