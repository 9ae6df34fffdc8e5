"""`python -m benchmarks.render`: the JSON of a run as Markdown (the README's table, the goals, every table) and plots.

Without options it prints the README's table and the goals, of the only machine under benchmarks/results/.
"""

import argparse
import json
from pathlib import Path

from benchmarks.support import goals as targets
from benchmarks.support import plots, tables
from benchmarks.support.goals import Results

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"

# label, the operation's groups, the row it stands beside, and what to call that
README_ROWS = [
    ("MOP generator, 60 (layer, expert) pairs", targets.BANK, "batched, three stages", "batched torch.matmul"),
    ("the same, pair by pair", targets.BANK, "pair by pair, terms*d*m array (the authors' way)", "the authors' way"),
    ("layer, 4096 rows, 4096 -> 4096, terms 16, rank 1", targets.LAYER, "dense F.linear", "dense nn.Linear"),
    ("layer, 512 rows, 1024 -> 1024, terms 4, rank 1", targets.SMALLER_LAYER, "three stages", "three torch.matmul"),
    ("layer, 40 rows, 768 -> 128, terms 16, full rank", targets.FULL, targets.ARRAY, "Compacter's way"),
]


def load(folder: Path, machine: str | None) -> Results:
    """The modules of one machine; its name is what stands behind the module's in the file names."""
    files = sorted(folder.glob("*.json"))
    machines = sorted({path.name.split(".")[1] for path in files})
    if machine is None and len(machines) == 1:
        machine = machines[0]
    if machine not in machines:
        raise SystemExit(f"--machine must be one of {', '.join(machines) or '(no results yet: pytest --benchmark)'}")
    chosen = [path for path in files if path.name.split(".")[1] == machine]
    return Results({path.name.split(".")[0]: json.loads(path.read_text()) for path in chosen})


def readme_table(results: Results) -> list[str]:
    """A row a work: our medians, forward and with backward, and the alternative's."""
    lines = ["| float32, ms, forward / with backward | mop_kernels | beside | | times |", "|---|---:|---|---:|---:|"]
    for label, group, name, alternative in README_ROWS:
        both = [group + targets.FORWARD, group + targets.BOTH]
        try:
            mine = [results.ours(g) for g in both]
            theirs = [results.median(g, name) for g in both]
        except KeyError:  # that file has not been run
            continue
        cells = [" / ".join(tables.digits(ms) for ms in pair) for pair in (mine, theirs)]
        times = " / ".join(f"{their / own:.1f}" for their, own in zip(theirs, mine))
        lines.append(f"| {label} | {cells[0]} | {alternative} | {cells[1]} | {times} |")
    found = next(iter(results.modules.values()))
    machine = found["machine"]
    compiler = machine["compiled"].get("compiler", "no compiler")
    lines += ["", f"{plots.machine_line(found)}, {compiler}, commit {machine['commit']}: `{found['command']}`"]
    return lines


def all_tables(results: Results) -> list[str]:
    lines = []
    for module, found in results.modules.items():
        lines += ["", f"## {module}", "", *tables.headline(module, found)[1:]]
        for group, rows in tables.groups(found).items():
            lines += ["", f"### {group}", "", *tables.as_markdown(rows, found)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON (%(default)s)")
    parser.add_argument("--machine", help="which, if the folder has several: the part of the file names after the dot")
    parser.add_argument("--all", action="store_true", help="print every table as well")
    parser.add_argument("--plots", action="store_true", help="draw the plots")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where to (%(default)s)")
    arguments = parser.parse_args()
    results = load(arguments.results, arguments.machine)
    print("\n".join([*readme_table(results), "", *targets.as_markdown(results)]))
    if arguments.all:
        print("\n".join(all_tables(results)))
    if arguments.plots:
        import matplotlib as mpl

        mpl.use("Agg")
        arguments.images.mkdir(parents=True, exist_ok=True)
        plots.scaling(results, arguments.images / "scaling.png")
        plots.share_of_floor(results, arguments.images / "share_of_floor.png")


if __name__ == "__main__":
    main()
