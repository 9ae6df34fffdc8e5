"""Two plots of the results: how the time of the bank scales, and the share of the floor that each operation reaches."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.support import floors, tables
from benchmarks.support.contenders import BATCHED_PRODUCT, BATCHED_STAGES
from benchmarks.support.results import Found, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALING_WAYS = {"mop_kernels cpu": "tab:blue", BATCHED_STAGES: "tab:orange", BATCHED_PRODUCT: "tab:green"}


def scaling(results: Results, path: Path) -> None:
    """Draw the median times of forward + backward, with one panel per size that changes."""
    import matplotlib.pyplot as plt

    found = results.modules["mop_ffn_scaling"]
    rows = found["rows"]
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = plt.subplots(1, len(axes_names), figsize=(3.2 * len(axes_names), 3.4), sharey=True)
    for panel, axis in zip(panels, axes_names):
        for name, color in SCALING_WAYS.items():
            line = sorted((row["at"], row["median_ms"]) for row in rows if (row["axis"], row["name"]) == (axis, name))
            panel.plot(*zip(*line), marker="o", color=color, label=name)
        at = sorted({row["at"] for row in rows if row["axis"] == axis})
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(at, [str(a) for a in at])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("forward + backward, ms")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    _save(figure, path, machine_line(found), top=0.87, bottom=0.2)


def share_of_floor(results: Results, path: Path) -> None:
    """Draw the share of the larger floor, arithmetic or bytes, that each operation reaches at full size."""
    import matplotlib.pyplot as plt

    bars: list[tuple[str, float, str]] = []
    for group, (module, rows) in results.groups().items():
        best = next((row for row in rows if row["name"] == "mop_kernels cpu"), None)
        if best is not None and best.get("flops") and "axis" not in best and not group.startswith("peers"):
            floor, limit = max((ms, limit) for limit, ms in floors.of_row(best, module).items())
            bars.append((group, 100 * floor / best["median_ms"], limit))
            line = machine_line(module)
    figure, panel = plt.subplots(figsize=(10, 0.3 * len(bars) + 1.4))
    colors = {"arithmetic": "tab:blue", "bytes": "tab:cyan"}
    for limit, color in colors.items():
        chosen = [(at, share) for at, (_, share, what) in enumerate(bars) if what == limit]
        if chosen:
            drawn = panel.barh(*zip(*chosen), color=color, label=f"floor set by {limit}")
            panel.bar_label(drawn, fmt="%.0f", padding=2, fontsize=8)
    panel.margins(y=0.02)
    panel.set_yticks(range(len(bars)), [group for group, *_ in bars], fontsize=8)
    panel.invert_yaxis()
    panel.set(xlim=(0, max(110, 1.1 * max(share for _, share, _ in bars))), xlabel="floor / our median, %")
    panel.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
    panel.grid(axis="x", alpha=0.3)
    _save(figure, path, line, left=0.5, bottom=0.9 / figure.get_figheight(), top=1 - 0.35 / figure.get_figheight())


def machine_line(found: Found) -> str:
    """Return the machine, the dtype and the statistic of the numbers."""
    return f"{tables.machine_line(found)}, float32, medians"


def _save(figure: "Figure", path: Path, line: str, **margins: float) -> None:
    figure.text(0.5, 0.01, line, ha="center", fontsize=8, color="gray")
    figure.tight_layout()
    figure.subplots_adjust(**margins)
    figure.savefig(path, dpi=130)
