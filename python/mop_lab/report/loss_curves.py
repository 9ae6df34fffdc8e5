"""Plot the losses of runs, and the scores of their validations, as one SVG."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from warnings import catch_warnings, simplefilter

from mop_t5.operations.run_folder import read_history
from mop_t5.plots.charts import LOSS, Curve, Panel, curve_figure
from mop_t5.plots.figures import save_figure

from mop_lab.finished_runs import FinishedSystem
from mop_lab.report.found import Plot

_PANELS = {LOSS: ("loss",), "validation score": ("eval_mean", "eval_rouge")}


def loss_curves(systems: Sequence[FinishedSystem]) -> Plot | None:
    """Return one curve per run, in the colour and dashes of its system. None if no run has a history."""
    panels = [Panel(label, {s.label: _curves(s, keys) for s in systems}) for label, keys in _PANELS.items()]
    panels = [panel for panel in panels if any(panel.curves.values())]
    if not panels:
        return None
    labels = [system.label for system in systems]
    with TemporaryDirectory() as folder, catch_warnings():
        simplefilter("ignore")  # the PNG may lack a font, but only the SVG is used
        _, svg = save_figure(curve_figure(panels, labels), Path(folder) / "loss-curves", labels)
        return Plot("loss curves", "image/svg+xml", svg.read_bytes())


def _curves(system: FinishedSystem, keys: Sequence[str]) -> list[Curve]:
    """Return the points (step, value) of each run, for the first of these keys that a point has."""
    curves = []
    for run in system.runs:
        found = ((point["step"], [point[key] for key in keys if key in point]) for point in read_history(run.folder))
        curves.append([(step, values[0]) for step, values in found if values])
    return [points for points in curves if points]
