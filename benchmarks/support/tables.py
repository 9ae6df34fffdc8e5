"""Rows of a result as text: the table of a run, and Markdown."""

from collections.abc import Collection, Sequence

from benchmarks.support import floors
from benchmarks.support.results import Found, Row, groups, own_median

SCALES = {"ms": 1.0, "us": 1e3}  # of milliseconds


def digits(number: float) -> str:
    """Return a time as text with about three digits."""
    return f"{number:.4f}" if number < 1 else f"{number:.2f}" if number < 100 else f"{number:.0f}"


def cells(row: Row, rows: list[Row], found: Found, unit: str = "ms") -> dict[str, str]:
    """Return the columns behind the name of a row.

    Args:
        row: The row.
        rows: All rows of its group.
        found: The result that holds the rows.
        unit: Unit of the times, "ms" or "us".
    """
    if "peak_mb" in row:
        peak, needed = row["peak_mb"], row["needed_mb"]
        return {"peak MB": f"{peak:.1f}", "needed MB": f"{needed:.1f}", "peak / needed": f"{peak / needed:.2f}"}
    scale = SCALES[unit]
    shown = {f"median {unit}": digits(scale * row["median_ms"])}
    if "q1_ms" in row:
        shown["quartiles"] = f"{digits(scale * row['q1_ms'])}-{digits(scale * row['q3_ms'])}"
    own, least = own_median(rows), floors.of_row(row, found)
    shown["min"] = digits(scale * row["min_ms"])
    shown["times ours"] = f"{row['median_ms'] / own:.2f}" if own else "-"
    shown["% of floor"] = f"{100 * max(least.values()) / row['median_ms']:.0f}" if least else "-"
    if "page_faults_a_call" in row:
        shown["faults"] = str(row["page_faults_a_call"])
    return shown


def rates_line(found: Found) -> list[str]:
    """Return the rates of the machine as one line. Empty if no rates were measured."""
    if "before" in found:
        before: dict[str, float] = found["before"]
        after = found.get("after", before)
        return [
            f"torch.mm 1024^3 {before['mm_gflops']:.0f} GFLOP/s before, {after['mm_gflops']:.0f} after; "
            f"copy {before['copy_gbps']:.1f} GB/s before, {after['copy_gbps']:.1f} after"
        ]
    if "rates" in found:
        mm = ", ".join(f"{name} {rate / 1e3:.0f}" for name, rate in found["rates"]["mm_gflops"].items())
        return [f"copy {found['rates']['copy_gbps']:.0f} GB/s; torch.mm 8192^3, TFLOP/s: {mm}"]
    return []


def machine_line(found: Found) -> str:
    """Return the CPU, the threads and the version of torch."""
    machine = found["machine"]
    return f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"


def as_markdown(module: str, found: Found, unit: str = "ms") -> list[str]:
    """Return all tables of a module, whose last rows are the floors.

    Args:
        module: The name of the module.
        found: The result of the module.
        unit: Unit of the times, "ms" or "us".
    """
    lines = [f"## {module}", "", *rates_line(found)]
    for group, rows in groups(found).items():
        heads = ["", *cells(rows[0], rows, found, unit)]
        table = [heads]
        for row in rows:
            name = f"**{row['name']}**" if row["kind"] == "ours" else row["name"]
            table.append([name, *cells(row, rows, found, unit).values()])
        for limit, ms in floors.of_row(rows[0], found).items():
            if limit == "arithmetic":
                name = f"floor: {rows[0]['flops'] / 1e6:.0f} MFLOP at the torch.mm rate"
            else:
                name = f"floor: {rows[0]['bytes'] / 1e6:.1f} MB at the copy rate"
            table.append([name, digits(SCALES[unit] * ms), *[""] * (len(heads) - 2)])
        first, *widths = (max(map(len, column)) for column in zip(*table))
        padded = [[row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths))] for row in table]
        lines += ["", f"### {group}", "", *markdown(padded)]
    return lines


def markdown(table: Sequence[Sequence[object]], text: Collection[int] = (0,)) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        table: The cells: the row of heads, then the other rows.
        text: The columns whose cells are aligned to the left. The cells of the other columns go to the right.
    """
    heads, *rows = (f"| {' | '.join(map(str, row))} |" for row in table)
    rules = ("-" * (len(str(head)) + 1) + ("-" if k in text else ":") for k, head in enumerate(table[0]))
    return [heads, f"|{'|'.join(rules)}|", *rows]
