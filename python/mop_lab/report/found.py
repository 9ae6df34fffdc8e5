"""Find the content of folders: finished systems, the tables and plots beside them, and all that the page leaves out."""

import html
import itertools
import os
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, SCORES, Table, TaskScores, with_average
from mop_t5.operations.run_folder import SETTINGS, read_history, read_settings

from mop_lab.finished_runs import FinishedRun, FinishedSystem, finished_systems, scored_folders, suite_baselines

NUMBER = re.compile(r"[-+−]?[\d.,]+( ?[±/] ?[-+−]?[\d.,]+)*( ?%)?|-|nan")  # a cell with a number
_BAR = re.compile(r"(?<!\\)\|")  # ends a cell
_EARLIER = re.compile(r"(.+)\.\d+")  # the names that write_beside gives to earlier files
_LONGEST_ALT = 20  # texts of a plot that its description repeats
_IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}  # in order of their names: an SVG takes the place of a PNG
_NOT_RESULTS = ("adapter", "backbone", "checkpoints")


class Plot(NamedTuple):
    """An image of the page.

    Attributes:
        name: The path of the file without the suffix. It is the heading of the plot.
        media_type: The type of the image, such as "image/svg+xml".
        content: The bytes of the image.
    """

    name: str
    media_type: str
    content: bytes

    @property
    def source(self) -> str:
        """Return the image as a data URI."""
        return f"data:{self.media_type};base64,{b64encode(self.content).decode()}"

    @property
    def alt(self) -> str:
        """Return a description: the name, and the texts of an SVG that are no numbers."""
        words: list[str] = []
        if self.media_type == "image/svg+xml":
            texts = re.findall(r"<text[^>]*>([^<]+)</text>", self.content.decode("utf-8", "replace"))
            words += dict.fromkeys(html.unescape(text).strip() for text in texts if not NUMBER.fullmatch(text.strip()))
        return f"Plot {self.name}" + (f": {', '.join(words[:_LONGEST_ALT])}" if words else "")


@dataclass(frozen=True)
class Found:
    """The content of folders.

    Args:
        systems: The finished systems.
        baselines: baseline -> scenario -> scores.
        tables: name of a Markdown file -> its tables.
        plots: The plots.
        left_out: Everything that the page does not show -> the reason.
    """

    systems: Sequence[FinishedSystem]
    baselines: Mapping[str, Mapping[str, TaskScores]]
    tables: Mapping[str, Sequence[Table]]
    plots: Sequence[Plot]
    left_out: Mapping[str, str]


def find(folders: Sequence[str | Path], split: str) -> Found:
    """Return the content of folders. A folder may also hold tables and plots only.

    Args:
        folders: The folders. At least one must hold evaluated runs.
        split: The split that was scored.

    Raises:
        FileNotFoundError: A folder does not exist or holds nothing to show.
        ValueError: No folder is given, or a run is damaged.
    """
    places = list(dict.fromkeys(map(Path, folders)))
    with_runs = [place for place in places if scored_folders(place, split)]
    left_out: dict[str, str] = {}
    systems = [_complete(system, left_out) for system in finished_systems(with_runs or places, split)]
    tables: dict[str, list[Table]] = {}
    plots: dict[str, Plot] = {}
    prefixes = _prefixes(places)
    seen: set[Path] = set()
    for place in places:
        files = list(_beside_runs(place))
        if place not in with_runs and not files:
            raise FileNotFoundError(
                f"{place} holds no run that was evaluated on the {split} split, no table and no plot. Leave it out."
            )
        for path in files:
            if path.resolve() in seen:  # one folder may lie in another
                continue
            seen.add(path.resolve())
            name = prefixes[place] + path.with_suffix("").relative_to(place).as_posix()
            if path.suffix in _IMAGES:
                plots[name] = Plot(name, _IMAGES[path.suffix], path.read_bytes())
            else:
                tables |= _tables(path, name, left_out)
    for place in places:
        left_out |= _unfinished(place, split)
    return Found(systems, _baselines(systems, places, split), tables, list(plots.values()), left_out)


def tables_of(markdown: str) -> list[Table]:
    """Return the tables that `to_markdown` wrote, with their cells as texts.

    A document, which begins with #, has no such tables. Other paragraphs are passed over.

    Raises:
        ValueError: A row has more or fewer cells than its header.
    """
    tables: list[Table] = []
    before = ""
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


def _tables(path: Path, name: str, left_out: dict[str, str]) -> dict[str, list[Table]]:
    try:
        tables = tables_of(path.read_text(encoding="utf-8"))
    except ValueError as error:  # another program's table, or no text
        left_out[f"{name}{path.suffix}"] = f"its tables cannot be read ({error})"
        return {}
    return {name: tables} if tables else {}


def _complete(system: FinishedSystem, left_out: dict[str, str]) -> FinishedSystem:
    """Return the system without the seeds that lack the run of a scenario."""
    scenarios = {seed: set(scores) for seed, scores in system.scores.items()}
    most = max(scenarios.values(), key=len)
    for seed in [seed for seed in scenarios if scenarios[seed] != most]:
        missing = ", ".join(sorted(most - scenarios[seed])) or "other scenarios than the first seed"
        left_out[f"{system.label}, seed {seed}"] = f"not finished: {missing}"
    return replace(system, seeds={s: runs for s, runs in system.seeds.items() if scenarios[s] == most})


def _baselines(
    systems: Sequence[FinishedSystem], places: Sequence[Path], split: str
) -> dict[str, dict[str, TaskScores]]:
    """Return the baselines of runs and suites. Merge equal baselines, and number different ones that share a name."""
    suites = sorted(path.parent.parent for place in places for path in place.rglob(f"floors/{SCORES}"))
    found = [run.baselines() for system in systems for run in system.runs]
    found += [suite_baselines(suite, split) for suite in suites]
    merged: dict[str, dict[str, TaskScores]] = {}
    for baselines in found:
        for name, scores in baselines.items():
            scores = {scenario: one for scenario, one in scores.items() if scenario != AVERAGE}
            names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
            free = (n for n in names if all(merged.get(n, {}).get(s, one) == one for s, one in scores.items()))
            merged.setdefault(next(free), {}).update(scores)
    return {name: with_average(scores) for name, scores in merged.items()}


def _beside_runs(place: Path) -> Iterator[Path]:
    """Yield the Markdown files and plots in and under a folder, without the content of runs and earlier versions."""
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
            if path.suffix in (".md", *_IMAGES) and not kept:
                yield path


def _unfinished(place: Path, split: str) -> dict[str, str]:
    """Return the runs without an evaluation of the split -> the reason.

    Runs with an evaluation of another split, such as the trials of a rate grid, are counted per folder in `place`.
    """
    found: dict[str, str] = {}
    elsewhere: Counter[tuple[Path, str]] = Counter()
    trained = f"trained, not evaluated on the {split} split"
    for path in sorted(place.rglob(SETTINGS)):
        settings, run = read_settings(path.parent), FinishedRun(path.parent, split)
        trains = "steps" in settings and not settings.get("seeds")  # otherwise an evaluation, or the folder of seeds
        if trains and not (run.evaluation / SCORES).is_file():
            others = ", ".join(scores.parent.name for scores in sorted(run.folder.glob(f"evaluation-*/{SCORES}")))
            if others:
                elsewhere[place.joinpath(*run.folder.relative_to(place).parts[:1]), others] += 1
                continue
            found[str(run.folder)] = trained if read_history(run.folder) else "not trained to its end"
    for (folder, others), count in elsewhere.items():
        found[str(folder)] = f"{count} run{'' if count == 1 else 's'} with {others} only"
    return found


def _prefixes(places: Sequence[Path]) -> dict[Path, str]:
    """Return what the names of files begin with on the page: the name of the folder, if there are several folders."""
    names = [place.resolve().name for place in places]
    several = len(places) > 1
    return {p: (f"{name if names.count(name) == 1 else p}/" if several else "") for p, name in zip(places, names)}
