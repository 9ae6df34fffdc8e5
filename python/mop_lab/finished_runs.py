"""The evaluated runs under some folders, by system and seed, whoever made them: `mop-t5 train` and `evaluate`, a table,
a suite. Nothing is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mop_t5.data import Example
from mop_t5.evaluation import PREDICTIONS, SCORES, TaskScores, read_predictions, read_scores, with_average
from mop_t5.evaluation.run_evaluation import ALL_WEIGHTS, evaluation_folder
from mop_t5.operations import contents
from mop_t5.operations.run_folder import SETTINGS, content_of_weights, read_settings

SYSTEM = "system.json"  # in the folder of a system: what a suite calls it and trains
_SCORING = ("num_beams", "implementation", "unit")


@dataclass(frozen=True)
class FinishedRun:
    """One training and its evaluation. folder: the run folder. split: what was scored."""

    folder: Path
    split: str

    @property
    def evaluation(self) -> Path:
        return evaluation_folder(self.folder, self.split)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """run.json: the configuration, every default filled in."""
        return read_settings(self.folder)

    @property
    def method(self) -> str:
        return self.settings.get("method") or ALL_WEIGHTS

    @property
    def seed(self) -> int:
        if "seed" not in self.settings:
            raise ValueError(f"{self.folder / SETTINGS} is damaged: it names no seed. Copy it again, or train anew.")
        return self.settings["seed"]

    @property
    def says_how(self) -> bool:
        """Whether the evaluation has, beside its scores, what was scored and in which way."""
        return all((self.evaluation / name).is_file() for name in (SETTINGS, PREDICTIONS))

    @cached_property
    def scoring(self) -> dict[str, Any]:
        """run.json of the evaluation: corpus, split, num_beams, implementation, unit, normalise, and metrics where
        tasks have some. Raises ValueError where it does not say how texts were made and scored."""
        settings = read_settings(self.evaluation)
        if missing := [name for name in _SCORING if name not in settings]:
            raise ValueError(
                f"{self.evaluation / SETTINGS} is damaged: it has no {', '.join(missing)}. Evaluate again with "
                "--overwrite."
            )
        return settings

    @cached_property
    def made_of(self) -> dict[str, contents.Content] | None:
        """What was scored: the rows of the split and the training. Of an evaluation by an earlier version the rows
        are those beside its predictions, and the training is not known. None where there is nothing to know it by."""
        recorded = contents.read_contents(self.evaluation)
        if recorded is not None or not self.says_how:
            return recorded
        return {self.split: contents.of_rows([example for example, _ in read_predictions(self.evaluation)])}

    def check_is_of_its_weights(self) -> None:
        """Raise ValueError if the run was trained on since it was evaluated, where that is known."""
        recorded = contents.read_contents(self.evaluation)
        if recorded is not None and contents.changes(recorded, content_of_weights(self.folder)):
            raise ValueError(
                f"{self.evaluation} was made before {self.folder} was trained on, so its scores are of other weights. "
                "Evaluate again with --overwrite."
            )

    def scores(self) -> dict[str, TaskScores]:
        """Scenario -> scores, and their average last. Raises ValueError where they are of another method."""
        return self._own(read_scores(self.evaluation), SCORES)

    def floors(self) -> dict[str, dict[str, TaskScores]]:
        """Those that were scored beside it: floor -> scenario -> scores."""
        return {name: means for name, means in read_scores(self.evaluation).items() if name != self.method}

    def predictions(self) -> list[tuple[Example, str]]:
        """The rows of the split, and what the run says of each. Raises ValueError if the file is damaged, or of another
        method."""
        return [(example, self._own(texts, PREDICTIONS)) for example, texts in read_predictions(self.evaluation)]

    def _own(self, systems: Mapping[str, Any], file: str) -> Any:
        if self.method not in systems:
            raise ValueError(
                f"{self.evaluation / file} has nothing of {self.method!r}, the method of its run; it has "
                f"{', '.join(map(repr, systems)) or 'nothing'}. Evaluate again with --overwrite."
            )
        return systems[self.method]


@dataclass(frozen=True)
class FinishedSystem:
    """What is one row of a table. trained, backbone: parameters, None where no suite has counted them. seeds: seed ->
    its run, or its runs where each scenario has one of its own."""

    label: str
    method: str
    trained: int | None
    backbone: int | None
    seeds: dict[int, list[FinishedRun]]

    def scores(self) -> dict[int, dict[str, TaskScores]]:
        """Seed -> scenario -> scores, their average last."""
        return {
            seed: with_average({name: scores for run in runs for name, scores in run.scores().items()})
            for seed, runs in self.seeds.items()
        }

    def predictions(self, seed: int) -> list[tuple[Example, str]]:
        """The rows of the split in order of their scenarios and ids, and what the system says of each."""
        rows = [row for run in self.seeds[seed] for row in run.predictions()]
        return sorted(rows, key=lambda row: (row[0].scenario, row[0].id or "", row[0].dialogue))


def finished_systems(folders: Sequence[str | Path], split: str = "test") -> list[FinishedSystem]:
    """The systems with evaluated runs in or under these folders, in order of the folders' names.

    A run belongs to the system whose system.json lies above it; one without is a system of its own, called by the
    folders that lead to it. Equal labels have a folder behind them, so that no two systems share one. A seed counts
    when all its runs are evaluated. Raises FileNotFoundError for a folder that does not exist or holds no evaluation of
    `split`, ValueError for a damaged one.
    """
    if not folders:
        raise ValueError("no folders are given. Name at least one that `mop-t5 train` or `mop-t5 table` wrote.")
    found: dict[Path, list[FinishedRun]] = {}  # by the folder of the system
    labels: dict[Path, str] = {}
    given: dict[Path, Path] = {}  # the folder that a system was found in
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder. Give one that `mop-t5 train` or `mop-t5 table` wrote.")
        scored = sorted(path.parent.parent for path in folder.rglob(f"evaluation-{split}/{SCORES}"))
        if not scored:
            raise FileNotFoundError(
                f"{folder} holds no run that was evaluated on the {split} split. Run `mop-t5 evaluate` first."
            )
        for path in scored:
            above = next((p for p in path.parents if (p / SYSTEM).is_file()), None)
            run = FinishedRun(path, split)
            run.check_is_of_its_weights()
            several = path.name.startswith("seed-") and (path.parent / SETTINGS).is_file()
            key = above or (path.parent if several else path)
            labels[key] = _read_system(above)["label"] if above else _name(key, folder)
            given.setdefault(key, folder)
            if run.folder not in {known.folder for known in found.setdefault(key, [])}:
                found[key].append(run)
    systems = {key: _system(labels[key], key, runs) for key, runs in found.items()}
    finished = {key: system for key, system in systems.items() if system.seeds}
    if not finished:
        raise FileNotFoundError(f"no seed has all its runs evaluated in {', '.join(map(str, folders))}.")
    return list(_told_apart(finished, given))


def _system(label: str, key: Path, runs: Sequence[FinishedRun]) -> FinishedSystem:
    seeds: dict[int, list[FinishedRun]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    known = _read_system(key) if (key / SYSTEM).is_file() else {}
    whole = {seed: seeds[seed] for seed in sorted(seeds) if len(seeds[seed]) >= known.get("runs", 1)}
    return FinishedSystem(label, runs[0].method, known.get("trained"), known.get("backbone"), whole)


def _told_apart(systems: Mapping[Path, FinishedSystem], given: Mapping[Path, Path]) -> Iterator[FinishedSystem]:
    """Systems of equal labels get behind theirs the folder that was given or, where one holds several of them, their
    own."""
    labels = Counter(system.label for system in systems.values())
    in_folder = Counter((system.label, given[key]) for key, system in systems.items())
    for key, system in systems.items():
        where = given[key] if in_folder[system.label, given[key]] == 1 else key
        yield replace(system, label=f"{system.label} ({where})") if labels[system.label] > 1 else system


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else folder.resolve().name


def _read_system(folder: Path) -> dict[str, Any]:
    path = folder / SYSTEM
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not isinstance(known.get("label"), str):
            raise ValueError("it names no label")
        return known
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Take it away, and the suite writes it again.") from error
