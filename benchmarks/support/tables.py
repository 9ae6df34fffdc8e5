"""Rows of a module's JSON as text: the table of a run, and Markdown. Knows nothing of how they were measured."""

TIME_COLUMNS = ("median ms", "quartiles", "min", "times ours", "% of floor", "faults")
MEMORY_COLUMNS = ("peak MB", "needed MB", "peak / needed")


def groups(found: dict) -> dict[str, list[dict]]:
    """The rows of each table, fastest (or smallest) first."""
    sorted_rows = sorted(found["rows"], key=lambda row: row.get("median_ms", row.get("peak_mb")))
    names = dict.fromkeys(row["group"] for row in found["rows"])
    return {name: [row for row in sorted_rows if row["group"] == name] for name in names}


def rates(found: dict) -> dict[str, float]:
    """The better of the rates measured before and after: a floor must not rise because something disturbed one."""
    return {key: max(found["before"][key], found.get("after", found["before"])[key]) for key in found["before"]}


def floor_ms(row: dict, found: dict) -> dict[str, float]:
    """Least times of the row's work: {"arithmetic": ..., "bytes": ...}, empty where no work is counted."""
    if row.get("flops") is None:
        return {}
    rate = rates(found)
    return {"arithmetic": row["flops"] / rate["mm_gflops"] / 1e6, "bytes": row["bytes"] / rate["copy_gbps"] / 1e6}


def own_median(rows: list[dict]) -> float | None:
    return min((row["median_ms"] for row in rows if row["kind"] == "ours" and "median_ms" in row), default=None)


def cells(row: dict, rows: list[dict], found: dict) -> list[str]:
    """The columns of a row behind its name."""
    if "peak_mb" in row:
        return [f"{row['peak_mb']:.1f}", f"{row['needed_mb']:.1f}", f"{row['peak_mb'] / row['needed_mb']:.2f}"]
    own, floors = own_median(rows), floor_ms(row, found)
    return [
        digits(row["median_ms"]),
        f"{digits(row['q1_ms'])}-{digits(row['q3_ms'])}",
        digits(row["min_ms"]),
        f"{row['median_ms'] / own:.2f}" if own else "-",
        f"{100 * max(floors.values()) / row['median_ms']:.0f}" if floors else "-",
        str(row["page_faults_a_call"]),
    ]


def digits(ms: float) -> str:
    return f"{ms:.4f}" if ms < 1 else f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"


def columns(rows: list[dict]) -> tuple[str, ...]:
    return MEMORY_COLUMNS if "peak_mb" in rows[0] else TIME_COLUMNS


def floor_rows(rows: list[dict], found: dict) -> list[tuple[str, float]]:
    floors = floor_ms(rows[0], found)
    if not floors:
        return []
    return [
        (f"floor: {rows[0]['flops'] / 1e6:.0f} MFLOP at the torch.mm rate", floors["arithmetic"]),
        (f"floor: {rows[0]['bytes'] / 1e6:.1f} MB at the copy rate", floors["bytes"]),
    ]


def headline(module: str, found: dict) -> list[str]:
    machine, before, after = found["machine"], found["before"], found.get("after", found["before"])
    return [
        f"{module}: {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, `{found['command']}`",
        f"torch.mm 1024^3 {before['mm_gflops']:.0f} GFLOP/s before, {after['mm_gflops']:.0f} after; "
        f"copy {before['copy_gbps']:.1f} GB/s before, {after['copy_gbps']:.1f} after",
    ]


def as_text(module: str, found: dict) -> list[str]:
    lines = ["", *headline(module, found)]
    for group, rows in groups(found).items():
        heads = columns(rows)
        widths = [max(len(head), 16 if head == "quartiles" else 9) + 2 for head in heads]
        lines += ["", group, " " * 44 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths))]
        for row in rows:
            line = "".join(f"{cell:>{width}}" for cell, width in zip(cells(row, rows, found), widths))
            lines.append(f"{row['name']:44}{line}")
        lines += [f"{name:44}{digits(ms):>{widths[0]}}" for name, ms in floor_rows(rows, found)]
    return lines


def as_markdown(rows: list[dict], found: dict) -> list[str]:
    """One group as a Markdown table; the floors are its last rows."""
    heads = columns(rows)
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for row in rows:
        name = f"**{row['name']}**" if row["kind"] == "ours" else row["name"]
        lines.append(f"| {name} | {' | '.join(cells(row, rows, found))} |")
    for name, ms in floor_rows(rows, found):
        lines.append(f"| {name} | {digits(ms)} |{' |' * (len(heads) - 1)}")
    return lines
