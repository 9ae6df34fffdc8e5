"""Files of rows in every format that `mop-t5 corpus convert` reads, and what the command says of bad ones."""

import csv
import gzip
import io
import json

from mop_t5.cli.main import main

ROWS = [{"a": f"x{i}", "b": "y, \u4e2d\n", "label": i % 2} for i in range(6)]


def written(path, rows):
    """The rows as a file of the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".json"):
        text = json.dumps(rows)
    else:
        out = io.StringIO()
        tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if name.endswith(".tsv") else {}
        writer = csv.DictWriter(out, list(rows[0]), **tabs)
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def fails(capsys, *arguments):
    assert main(["corpus", "convert", *map(str, arguments)]) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("mop-t5 corpus convert: ")
    assert "\n" not in message
    return message
