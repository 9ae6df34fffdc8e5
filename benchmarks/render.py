"""`python -m benchmarks.render`: show the JSON of a run as Markdown (README's table, goals, all tables) and as plots.

Without options the command prints the README's table and the goals, for the only machine under benchmarks/results/.
"""

import argparse
from pathlib import Path

from benchmarks.support import goals, plots, tables
from benchmarks.support.contenders import ARRAY, AUTHORS_WAY, BATCHED_STAGES, DENSE, STAGES
from benchmarks.support.results import RESULTS, ROOT, Results, load
from benchmarks.support.work import DIRECTIONS

IMAGES = ROOT / "docs" / "images"

# label, the operation's groups, the row that it is compared with, and the name of that row in the README
README_ROWS = [
    ("MOP generator, 60 (layer, expert) pairs", goals.BANK_GROUP, BATCHED_STAGES, "batched torch.matmul"),
    ("the same, pair by pair", goals.BANK_GROUP, AUTHORS_WAY, "the authors' way"),
    ("layer, 4096 rows, 4096 -> 4096, terms 16, rank 1", goals.LAYER_GROUP, DENSE, "dense nn.Linear"),
    ("layer, 512 rows, 1024 -> 1024, terms 4, rank 1", goals.SMALLER_LAYER_GROUP, STAGES, "three torch.matmul"),
    ("layer, 40 rows, 768 -> 128, terms 16, full rank", goals.FULL_GROUP, ARRAY, "Compacter's way"),
]


def readme_table(results: Results) -> list[str]:
    """Return one row per work: our medians, forward and with backward, and the medians of the alternative."""
    table = [["float32, ms, forward / with backward", "mop_kernels", "beside", "", "times"]]
    for label, group, name, alternative in README_ROWS:
        both = [group + direction for direction in DIRECTIONS]
        try:
            mine = [results.ours(g) for g in both]
            theirs = [results.median(g, name) for g in both]
        except KeyError:  # that file has not been run
            continue
        own_ms, other_ms = (" / ".join(map(tables.digits, pair)) for pair in (mine, theirs))
        times = " / ".join(f"{their / own:.1f}" for their, own in zip(theirs, mine))
        table.append([label, own_ms, alternative, other_ms, times])
    found = next(iter(results.modules.values()))
    machine = found["machine"]
    compiler = machine["compiled"].get("compiler", "no compiler")
    about = f"{plots.machine_line(found)}, {compiler}, commit {machine['commit']}: `{found['command']}`"
    return [*tables.markdown(table, text=(0, 2)), "", about]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON (%(default)s)")
    parser.add_argument(
        "--machine", help="the part of the file names after the dot, if the folder has several machines"
    )
    parser.add_argument("--all", action="store_true", help="print all tables as well")
    parser.add_argument("--plots", action="store_true", help="draw the plots")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the plots (%(default)s)")
    arguments = parser.parse_args()
    results = load(arguments.results, arguments.machine)
    print("\n".join([*readme_table(results), "", *goals.as_markdown(goals.CPU_GOALS, results)]))
    if arguments.all:
        for module, found in results.modules.items():
            print("\n".join(["", *tables.as_markdown(module, found)]))
    if arguments.plots:
        import matplotlib as mpl

        mpl.use("Agg")
        arguments.images.mkdir(parents=True, exist_ok=True)
        plots.scaling(results, arguments.images / "scaling.png")
        plots.share_of_floor(results, arguments.images / "share_of_floor.png")


if __name__ == "__main__":
    main()
