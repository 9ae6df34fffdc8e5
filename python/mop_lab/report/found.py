"""What lies in folders of runs: systems that are finished, tables and plots beside them, and what is not shown."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, SCORES, Table, TaskScores, read_scores, with_average
from mop_t5.operations.run_folder import SETTINGS, read_history, read_settings

from mop_lab.finished_runs import FinishedRun, FinishedSystem, finished_systems

_BAR = re.compile(r"(?<!\\)\|")  # ends a cell
_EARLIER = re.compile(r"(.+)\.\d+")  # how write_beside calls what it keeps
_NOT_RESULTS = ("adapter", "backbone", "checkpoints")


class LeftOut(NamedTuple):
    """Something in the folders that the page does not show, and why."""

    what: str
    why: str


class Plot(NamedTuple):
    """name: where it lies, without the suffix. media_type: such as "image/svg+xml"."""

    name: str
    media_type: str
    content: bytes


@dataclass(frozen=True)
class Found:
    """tables: by the name of their file. floors: name -> scenario -> scores."""

    systems: Sequence[FinishedSystem]
    floors: Mapping[str, Mapping[str, TaskScores]]
    tables: Mapping[str, Sequence[Table]]
    plots: Sequence[Plot]
    left_out: Sequence[LeftOut]


def find(folders: Sequence[str | Path], split: str) -> Found:
    """What is in these folders. One of them may hold tables and plots only.

    Raises FileNotFoundError for a folder that does not exist or holds nothing of this, ValueError for a damaged run.
    """
    places = list(dict.fromkeys(map(Path, folders)))
    with_runs = [place for place in places if any(place.rglob(f"evaluation-{split}/{SCORES}"))]
    if not with_runs:
        finished_systems(places, split)  # raises what is missing
    left_out: list[LeftOut] = []
    systems = [_complete(system, left_out) for system in finished_systems(with_runs, split)]
    tables: dict[str, list[Table]] = {}
    plots: dict[str, Plot] = {}
    names, seen = _names(places), set()
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is no folder. Give one with runs, tables or plots.")
        files = list(_beside_runs(place))
        if place not in with_runs and not files:
            raise FileNotFoundError(
                f"{place} holds no run that was evaluated on the {split} split, no table and no plot. Leave it out."
            )
        for path in files:
            if path.resolve() in seen:  # of two folders one may hold the other
                continue
            seen.add(path.resolve())
            name = names[place] + path.with_suffix("").relative_to(place).as_posix()
            if path.suffix == ".svg":
                plots[name] = Plot(name, "image/svg+xml", path.read_bytes())
            elif path.suffix == ".png":
                plots.setdefault(name, Plot(name, "image/png", path.read_bytes()))
            else:
                tables |= _tables(path, name, left_out)
    left_out += dict.fromkeys(one for place in places for one in _unfinished(place, split))
    return Found(systems, _floors(systems, places, split), tables, list(plots.values()), left_out)


def tables_of(markdown: str) -> list[Table]:
    """The tables that `to_markdown` wrote, their cells as texts; none of a document, which begins with #. Other
    paragraphs are passed over. Raises ValueError for a row with more or fewer cells than its header."""
    tables, before = [], ""
    if markdown.startswith("#"):
        return tables
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = block.splitlines()
        if len(lines) > 1 and re.fullmatch(r"\|[-:|\s]+\|", lines[1]):
            header, _, *rows = lines
            tables.append(Table(before, _cells(header), [_cells(row) for row in rows]))
        elif tables and not tables[-1].notes and all(line.startswith("- ") for line in lines):
            tables[-1] = replace(tables[-1], notes=[line[2:] for line in lines])
        before = lines[0] if len(lines) == 1 else ""
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in _BAR.split(line.removeprefix("|").removesuffix("|"))]


def _tables(path: Path, name: str, left_out: list[LeftOut]) -> dict[str, list[Table]]:
    try:
        tables = tables_of(path.read_text(encoding="utf-8"))
    except ValueError as error:  # another's file, or one that is no text
        left_out.append(LeftOut(f"{name}{path.suffix}", f"its tables cannot be read ({error})"))
        return {}
    return {name: tables} if tables else {}


def _complete(system: FinishedSystem, left_out: list[LeftOut]) -> FinishedSystem:
    """The system without the seeds that lack the run of a scenario."""
    scenarios = {seed: set(scores) for seed, scores in system.scores().items()}
    most = max(scenarios.values(), key=len)
    for seed in [seed for seed in scenarios if scenarios[seed] != most]:
        missing = ", ".join(sorted(most - scenarios[seed])) or "other scenarios than the first seed"
        left_out.append(LeftOut(f"{system.label}, seed {seed}", f"not finished: {missing}"))
    return replace(system, seeds={s: runs for s, runs in system.seeds.items() if scenarios[s] == most})


def _floors(systems: Sequence[FinishedSystem], places: Sequence[Path], split: str) -> dict[str, dict[str, TaskScores]]:
    """Those that were scored beside runs or for a suite. Equal ones are one; others of a name are numbered."""
    found = [run.floors() for system in systems for runs in system.seeds.values() for run in runs]
    for folder in sorted(path.parent for place in places for path in place.rglob(f"floors/{SCORES}")):
        if read_settings(folder).get("split") == split:
            found.append(read_scores(folder))
    merged: dict[str, dict[str, TaskScores]] = {}
    for floors in found:
        for name, scores in floors.items():
            scores = {scenario: one for scenario, one in scores.items() if scenario != AVERAGE}
            number = 1
            while any(merged.get(_numbered(name, number), {}).get(s, one) != one for s, one in scores.items()):
                number += 1
            merged.setdefault(_numbered(name, number), {}).update(scores)
    return {name: with_average(scores) for name, scores in merged.items()}


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} ({number})"


def _beside_runs(place: Path) -> Iterator[Path]:
    """Markdown files and plots in and under a folder, but for what is in runs and the earlier ones that were kept."""
    for folder, inner, names in os.walk(place):
        here = Path(folder)
        if here != place and SETTINGS in names:  # a run or an evaluation
            inner.clear()
            continue
        inner[:] = sorted(n for n in inner if n not in _NOT_RESULTS and not n.startswith((".", "evaluation-")))
        for name in sorted(names):
            path = here / name
            earlier = _EARLIER.fullmatch(path.stem)
            kept = earlier is not None and f"{earlier[1]}{path.suffix}" in names
            if path.suffix in (".md", ".svg", ".png") and not kept:
                yield path


def _unfinished(place: Path, split: str) -> Iterator[LeftOut]:
    """Runs without an evaluation of the split. Those with one of another split, such as the trials of a grid, are
    counted by the folder in `place` that holds them."""
    elsewhere: Counter[tuple[Path, str]] = Counter()
    for path in sorted(place.rglob(SETTINGS)):
        settings, run = read_settings(path.parent), FinishedRun(path.parent, split)
        trains = "steps" in settings and not settings.get("seeds")  # elsewhere: an evaluation, or the folder of seeds
        if trains and not (run.evaluation / SCORES).is_file():
            others = [path.parent.name for path in sorted(run.folder.glob(f"evaluation-*/{SCORES}"))]
            if others:
                inner = run.folder.relative_to(place).parts[:1]
                elsewhere[place.joinpath(*inner), ", ".join(others)] += 1
                continue
            ended = read_history(run.folder)
            why = f"trained, not evaluated on the {split} split" if ended else "not trained to its end"
            yield LeftOut(str(run.folder), why)
    for (folder, others), count in elsewhere.items():
        yield LeftOut(str(folder), f"{count} run{'' if count == 1 else 's'} with {others} only")


def _names(places: Sequence[Path]) -> dict[Path, str]:
    """What the names of files begin with on the page: the folder's, where there are several."""
    last = [place.resolve().name for place in places]
    several = len(places) > 1
    return {p: (f"{name if last.count(name) == 1 else p}/" if several else "") for p, name in zip(places, last)}
