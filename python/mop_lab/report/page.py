"""Fill the template of the page with the content of folders. The same folders give the same bytes."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from mop_t5.evaluation import Table

from mop_lab.analysis.comparability import not_comparable, of_different_scenarios, scored_differently
from mop_lab.finished_runs import FinishedSystem
from mop_lab.report.configurations import configurations
from mop_lab.report.found import NUMBER, Found, find
from mop_lab.report.loss_curves import loss_curves
from mop_lab.report.predictions import KnownValues, predictions
from mop_lab.report.score_grids import overview, score_grid


def report_page(
    folders: Sequence[str | Path], split: str = "test", title: str | None = None, corpus: str | None = None
) -> str:
    """Return the HTML of finished runs, their tables and plots. It needs no network and no other file.

    Args:
        folders: Folders of runs, suites or analyses.
        split: The split that was scored.
        title: The heading of the page. None: the names of the folders.
        corpus: The folder with the training rows by which values are found. None: the folder that each run names.

    Raises:
        FileNotFoundError: A folder does not exist or holds nothing to show.
        ValueError: A run is damaged.
    """
    found = find(folders, split)
    systems = found.systems
    environment = Environment(
        loader=PackageLoader("mop_lab.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((files("mop_lab.report") / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    values = KnownValues(corpus)
    shown = predictions(systems, values)
    unmarked = {f"values of runs on {folder}": f"not marked: {why}" for folder, why in values.missing.items()}
    shared, own = configurations(systems)
    mark_best = not of_different_scenarios(systems)  # averages over different scenarios do not compete
    return environment.get_template("page.html").render(
        title=title or f"Report on {', '.join(Path(folder).resolve().name for folder in folders)}",
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        counts=_counts(found, len(shown["rows"]), len(shown["scenarios"]), split),
        scoring=None if scored_differently(systems) else _scoring(systems),
        warnings=not_comparable(systems),
        left_out={**found.left_out, **unmarked},
        overview=overview(systems, found.baselines, mark_best),
        by_scenario=score_grid(systems, found.baselines),
        several_seeds=any(len(system.seeds) > 1 for system in systems),
        best_marked=mark_best,
        uncounted=not all(system.backbone for system in systems),
        tables={name: [(table, _aligned_right(table)) for table in group] for name, group in found.tables.items()},
        plots=found.plots,
        losses=loss_curves(systems),
        shared=shared,
        own=own,
        marked=values.marked,
        data=_json(shown),
    )


def _policy(style: str, script: str) -> str:
    """Return a content security policy: the browser runs only this script, and fetches nothing."""
    of_style, of_script = (b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script))
    return f"default-src 'none'; img-src data:; style-src 'sha256-{of_style}'; script-src 'sha256-{of_script}'"


def _counts(found: Found, rows: int, scenarios: int, split: str) -> list[str]:
    seeds = sum(len(system.seeds) for system in found.systems)
    counts = {"system": len(found.systems), "training": seeds, "scenario": scenarios, f"{split} row": rows}
    return [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in counts.items()]


def _scoring(systems: Sequence[FinishedSystem]) -> str:
    """Return how all systems were scored."""
    how = systems[0].runs[0].scoring
    metrics = "metrics of the tasks, elsewhere " if how.get("metrics") else ""
    beams = "greedy search" if how["num_beams"] == 1 else f"{how['num_beams']} beams"
    form = "" if how["normalise"] == "none" else f", texts normalised to {how['normalise'].upper()}"
    return f"{metrics}ROUGE F1 × 100 by {how['implementation']}, unit {how['unit']}{form}; {beams}"


def _aligned_right(table: Table) -> list[bool]:
    """Return per column whether it holds numbers only."""
    columns = [[cell for cell in column if cell] for column in zip(*table.rows)] or [[] for _ in table.columns]
    return [bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells) for cells in columns]


def _json(content: Any) -> Markup:
    """Return JSON that cannot end the HTML element around it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
