"""`python -m benchmarks.tables.render`: write the tables between the markers of the pages, from results/*.json."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables.record import CLOSE, RESULTS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "comparison.md", ROOT / "docs" / "rouge.md"]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

BIASES = {
    "none": "no prefix",
    "tokens": "the rows are tokens, with distances of their own",
    "zero": "0",
    "before": "that of tokens before the text",
    "moved": "that of the text's first tokens, and **every distance in the text grows by the prefix's length**",
    "other": "another",
}


def load(name: str) -> dict[str, Any]:
    """Return a result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(rows: list[list[str]]) -> list[str]:
    """Return a Markdown table. The first row is the header."""
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def about(results: Iterable[dict[str, Any]]) -> list[str]:
    """Return what was run: commands, versions and dates."""
    rows = [["command", "date", "versions"]]
    for found in results:
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        rows.append([f"`{found['command']}`", found["date"], versions])
    return ["", *table(rows)]


def error(cell: Any) -> str:
    """Return a failed measurement as text. Empty for any other cell."""
    return f"raises `{cell['raises'].replace('`', '')}`" if isinstance(cell, dict) and "raises" in cell else ""


def equal(cell: Any) -> str:
    """Return whether a difference is that of rounding."""
    if isinstance(cell, str):
        return f"**{cell}**"
    return "equal" if cell < CLOSE else f"**differ by {cell:g}**"


def yes(cell: Any) -> str:
    """Return whether something is there."""
    return "yes" if cell else "no"


number = "{:,}".format  # thousands are separated


PREFIX_ROWS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("columns in the encoder self-attention", "encoder self-attention sees the rows", yes),
    ("columns in the decoder self-attention", "decoder self-attention sees the rows", yes),
    ("columns in the cross-attention", "cross-attention sees the rows", yes),
    ("bias in the encoder self-attention", "position bias of the rows, encoder", BIASES.__getitem__),
    ("bias in the decoder self-attention", "position bias of the rows, decoder", BIASES.__getitem__),
    ("cache", "`generate` with and without the cache", equal),
    ("cached generate against forward", "`generate` with the cache and a forward pass", equal),
    ("uncached generate against forward", "`generate` without the cache and a forward pass", equal),
    ("uncached steps that equal forward", "steps without the cache that equal it, of 8", number),
    ("cache with 3 beams", "3 beams with and without the cache", equal),
    ("score of the best beam against forward", "score of the best beam and a forward pass", equal),
    ("checkpointing", "gradients with and without activation checkpointing", equal),
    ("save and load", "logits after saving and loading", equal),
    ("padding", "logits of a row alone and padded in a batch", equal),
    ("reported parameters", "trainable parameters that the library reports", number),
    ("parameters with a gradient", "parameters whose gradient is not zero", number),
]


def prefixes() -> list[str]:
    """Return the table of prefix- and prompt-tuning."""
    results = {label: load(f"prefixes.{label.lower()}") for label in ("PEFT", "adapters", "mop_t5")}
    columns = {(label, kind): results[label]["columns"][kind] for kind in ("prefix", "prompt") for label in results}
    rows = [["", *(f"{label}, {kind}" for label, kind in columns)]]
    for key, label, text in PREFIX_ROWS:
        cells = (error(c[key]) or text(c[key]) if key in c else "not supported" for c in columns.values())
        rows.append([label, *cells])
    missing = [f"{label}, {kind}: {error(c['builds'])}" for (label, kind), c in columns.items() if "builds" in c]
    return [*table(rows), "", *missing, *about(results.values())]


def kronecker() -> list[str]:
    """Return the table of Kronecker layers."""
    results = [load("kronecker"), load("kronecker.adapters")]
    columns = {**results[0]["columns"], **results[1]["columns"]}
    header = ["layer", "W of y = x W", "scale at rank 2, alpha 6", "new layer", "bfloat16, sums of 1,024 ones"]
    header += ["bfloat16, error in roundings", "merged and unmerged, float32", "merged and unmerged, bfloat16"]
    rows = [header]
    for name, c in columns.items():
        scale = "none" if c["scale"] == 1 else f"{c['scale']:g} = alpha/rank"
        single, half = c["merged, float32"], c["merged, bfloat16"]
        merges = ["does not merge"] * 2 if single is None else [error(single) or equal(single), f"differ by {half:g}"]
        ones = "exact" if c["bfloat16 ones"] == 1 else f"{c['bfloat16 ones']:g} of the sum"
        last = [ones, f"{c['bfloat16 error']:g}", *merges]
        rows.append([name, f"`{c['formula']}`", scale, c["new layer"] or "initialises nothing", *last])
    return [*table(rows), *about(results)]


T5_ROWS = {
    "fresh head tied": "head of a model made from its configuration",
    "loaded head tied": "head after `from_pretrained` of the published layout",
    "tie_weights keeps the head": "`tie_weights()` keeps a head of its own",
    "resize keeps the head": "`resize_token_embeddings` to the same size keeps it",
    "scale before the head": "factor on the decoder's output (d_model 64: 0.125 is d_model^-0.5)",
    "generate masks padding": "`generate` without an attention_mask masks padding",
    "cache": "name of the cache in `forward` and in the output; its class",
    "cached steps, eager": "steps with the cache and one pass, eager",
    "cached steps, sdpa": "steps with the cache and one pass, sdpa",
    "reorder": "`reorder_cache`, next step",
    "crop(2)": "`crop(2)`, next step",
    "crop(-3)": "`crop(-3)`, next step",
    "static cache": "`cache_implementation='static'` and the default",
    "default attention": "attention by default",
    "sdpa against eager": "sdpa and eager",
    "flash_attention_2": "flash_attention_2 and eager",
    "flex_attention": "flex_attention and eager, on a CPU",
    "looks ahead in evaluation": "sdpa: a logit depends on later labels, evaluation",
    "looks ahead in training": "sdpa: a logit depends on later labels, training",
    "default dtype": "dtype of a bfloat16 checkpoint, loaded without a dtype",
    "loss without decoder_start_token_id": "computes a loss, if config.json has no decoder_start_token_id",
    "generate without decoder_start_token_id": "`generate`, if config.json has no decoder_start_token_id",
    "logged by from_pretrained": "`from_pretrained` logs",
}
_TIED = {True: "tied", False: "of its own"}


def t5_cell(row: str, cell: Any) -> str:
    """Return the cell of one member of the family as text."""
    if error(cell):
        kind, _, message = cell["raises"].partition(":")
        refused = "does not support" in message
        return "refused" if refused else error({"raises": f"{kind}: {message.strip()[:60]}..."})
    if isinstance(cell, float) and row != "scale before the head":  # a difference
        return equal(cell)
    if row.endswith("head tied"):
        return _TIED[cell]
    if isinstance(cell, bool):
        return yes(cell)
    return f"“{cell[:60]}...”" if len(str(cell)) > 80 else str(cell)


def of_family(row: str, cells: dict[str, Any]) -> str:
    """Return the cells of all members, each text once, with the members that it holds for."""
    members: dict[str, list[str]] = {}
    for member, cell in cells.items():
        members.setdefault(t5_cell(row, cell), []).append(member)
    if len(members) == 1:
        return next(iter(members))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in members.items())


def t5_versions() -> list[str]:
    """Return the table of releases of transformers."""
    names = [path.stem for path in RESULTS.glob("t5_versions.*.json")]
    names.sort(key=lambda name: [int(part) for part in name.split(".")[1:]])
    results = [load(name) for name in names]
    rows = [["", *(found["versions"]["transformers"] for found in results)]]
    for key, label in T5_ROWS.items():
        measured_for = list(results[0]["columns"][key])
        members = "" if len(measured_for) == 4 else f" ({', '.join(measured_for)})"
        rows.append([label + members, *(of_family(key, found["columns"][key]) for found in results)])
    return [*table(rows), *about(results)]


def rouge() -> list[str]:
    """Return the table of ROUGE packages."""
    results = [load(f"rouge{part}") for part in ("", ".rouge_chinese", ".py_rouge", ".easy_rouge")]
    rows = [["package", "call", "units", "ROUGE-1", "ROUGE-2", "ROUGE-L", "n-grams", "ROUGE-L counts", "by hand"]]
    for c in (column for found in results for column in found["columns"].values()):
        scores = c["scores"]
        if error(scores):
            rows.append([c["package"], c["call"], c["unit"], error(scores), *[""] * 5])
            continue
        means = ["" if mean is None else f"{mean:.2f}" for mean in scores["mean"]]
        longest = "the longest common sequence" if c["longest"] == "sequence" else "distinct units, over sentences"
        weight = f", F with beta {c['beta']:g}" if c["beta"] != 1 else ""
        grams = "" if scores["mean"][0] is None else c["counts"]
        hand = equal(scores["difference by hand"])
        call = f"`{c['call']}`" if any(mark in c["call"] for mark in "=(_") else c["call"]
        rows.append([c["package"], call, c["unit"], *means, grams, longest + weight, hand])
    return [*table(rows), *about(results)]


TABLES = {make.__name__: make for make in (prefixes, kronecker, t5_versions, rouge)}


def rendered(page: str) -> str:
    """Return the text of a page with its tables made anew."""
    return MARKED.sub(lambda found: "\n".join([found[1], *TABLES[found[2]](), "", found[3]]), page)


def main() -> None:
    """Run the command."""
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
