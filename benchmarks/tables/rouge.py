"""Measure ROUGE of ten pairs of Chinese summaries by the installed packages: `--rows NAME`."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from benchmarks.tables.record import Cell, measured, write
from benchmarks.tables.rouge_packages import ROWS, Row

PAIRS = Path(__file__).with_name("rouge_pairs.json")


def texts() -> list[tuple[str, str]]:
    """Return pairs of a reference and a candidate."""
    return [(pair["reference"], pair["candidate"]) for pair in json.loads(PAIRS.read_text(encoding="utf-8"))]


def scores(row: Row) -> dict[str, Cell]:
    """Return the mean F x 100 of ten pairs, the F of each pair, and the largest difference from those by hand."""
    found = [row.scores(*pair) for pair in texts()]
    expected = [row.choice.scores(*map(row.units_of, pair)) for pair in texts()]
    pairs = [(f, e) for one, other in zip(found, expected) for f, e in zip(one, other) if not math.isnan(f)]
    columns = [[100 * f for f in column] for column in zip(*found)]
    return {
        "mean": [None if math.isnan(column[0]) else round(sum(column) / len(column), 2) for column in columns],
        "pairs": [" ".join("-" if math.isnan(f) else f"{f:.2f}" for f in pair) for pair in zip(*columns)],
        "difference by hand": float(f"{100 * max(abs(f - e) for f, e in pairs):.1e}"),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", choices=list(ROWS), default="")
    given = parser.parse_args()
    columns = {}
    for row in ROWS[given.rows]:
        about = {"package": row.package, "call": row.call, "unit": row.unit, **asdict(row.choice)}
        columns[f"{row.package}, {row.call}, {row.unit}"] = {**about, "scores": measured(scores, row)}
    packages = sorted({row.package for row in ROWS[given.rows]})
    extra = ["cn-clip", "jieba", "tokenizers"] if given.rows in ("", "rouge_chinese") else []
    write(f"rouge.{given.rows}".rstrip("."), [*packages, *extra], columns)


if __name__ == "__main__":
    main()
