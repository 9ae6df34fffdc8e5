"""The page: what was found in the folders, put into the template. The same folders give the same bytes."""

from __future__ import annotations

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from mop_t5.evaluation import Table

from mop_lab.analysis.comparability import of_different_rows
from mop_lab.finished_runs import FinishedSystem
from mop_lab.report.configurations import configurations
from mop_lab.report.found import Found, LeftOut, Plot, find
from mop_lab.report.loss_curves import loss_curves
from mop_lab.report.predictions import KnownValues, predictions
from mop_lab.report.score_grids import by_scenario, differing_scenarios, overview

_NUMBER = re.compile(r"[-+−]?[\d.,]+( ?[±/] ?[-+−]?[\d.,]+)*( ?%)?|-|nan")
_LONGEST_ALT = 20  # texts of a plot that its description repeats


class Image(NamedTuple):
    """name: a heading. source: a data URI. alt: what stands in the plot."""

    name: str
    source: str
    alt: str


class ShownTable(NamedTuple):
    """numbers: by column, whether it is aligned to the right."""

    table: Table
    numbers: Sequence[bool]


def report_page(
    folders: Sequence[str | Path], split: str = "test", title: str | None = None, corpus: str | None = None
) -> str:
    """The HTML of finished runs, their tables and plots. It needs no network and no other file.

    folders: of runs, suites or analyses. corpus: folder of the training rows by which values are told from wording, in
    place of the one that each run names. Raises FileNotFoundError for one that does not exist or holds nothing to show,
    ValueError for a damaged run.
    """
    found = find(folders, split)
    systems, floors = found.systems, found.floors
    environment = Environment(
        loader=PackageLoader("mop_lab.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_part(name) for name in ("page.css", "page.js"))
    made_with = configurations(systems)
    values = KnownValues(corpus)
    shown = predictions(systems, values)
    unmarked = [LeftOut("values in the predictions", f"not marked: {why}") for why in values.missing.values()]
    losses = loss_curves(systems)
    return environment.get_template("page.html").render(
        title=title or f"Report on {', '.join(Path(folder).resolve().name for folder in folders)}",
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        counts=_counts(found, len(shown["rows"]), len(shown["scenarios"]), split),
        scoring=_scoring(systems) if made_with.scored_alike else None,
        warnings=of_different_rows(systems),
        left_out=[*found.left_out, *unmarked],
        overview=overview(systems, floors),
        by_scenario=by_scenario(systems, floors),
        several_seeds=any(len(system.seeds) > 1 for system in systems),
        differing_scenarios=differing_scenarios(systems),
        uncounted=any(system.trained is None for system in systems),
        tables={name: [ShownTable(t, _numbers(t)) for t in tables] for name, tables in found.tables.items()},
        plots=[_image(plot) for plot in found.plots],
        losses=None if losses is None else _image(losses),
        configurations=made_with,
        marked=values.marked,
        data=_json(shown),
    )


def _part(name: str) -> str:
    return (files("mop_lab.report") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy by which a browser runs this script and nothing else, and fetches nothing."""

    def only(text: str) -> str:
        return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; img-src data:; style-src {only(style)}; script-src {only(script)}"


def _counts(found: Found, rows: int, scenarios: int, split: str) -> list[str]:
    seeds = sum(len(system.seeds) for system in found.systems)
    counts = {"system": len(found.systems), "training": seeds, "scenario": scenarios, f"{split} row": rows}
    return [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in counts.items()]


def _scoring(systems: Sequence[FinishedSystem]) -> str:
    """Return how all systems were scored."""
    how = next(iter(systems[0].seeds.values()))[0].scoring
    metrics = "metrics of the tasks, elsewhere " if how.get("metrics") else ""
    beams = "greedy search" if how["num_beams"] == 1 else f"{how['num_beams']} beams"
    form = "" if how["normalise"] == "none" else f", texts normalised to {how['normalise'].upper()}"
    return f"{metrics}ROUGE F1 × 100 by {how['implementation']}, unit {how['unit']}{form}; {beams}"


def _numbers(table: Table) -> list[bool]:
    columns = [[cell for cell in column if cell] for column in zip(*table.rows)] or [[] for _ in table.columns]
    return [bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]


def _image(plot: Plot) -> Image:
    alt = f"Plot {plot.name}"
    if plot.media_type == "image/svg+xml":
        texts = re.findall(r"<text[^>]*>([^<]+)</text>", plot.content.decode("utf-8", "replace"))
        words = dict.fromkeys(html.unescape(text).strip() for text in texts if not _NUMBER.fullmatch(text.strip()))
        alt += f": {', '.join(list(words)[:_LONGEST_ALT])}" if words else ""
    return Image(plot.name, f"data:{plot.media_type};base64,{b64encode(plot.content).decode()}", alt)


def _json(content: Any) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
