"""Measure the memory that the training rows of a corpus take, in memory and streamed from the disk.

    python -m benchmarks.corpus_memory --rows 100000
    python -m benchmarks.corpus_memory --rows 1000000 --ways streamed 'streamed again' --folder FOLDER

A corpus is a generated train.parquet of dialogues of 100 Chinese characters with summaries of 20. Each row of the table
is one process: it reads the corpus, makes the dataset and the sampler of a training, and takes the rows of 100 batches
of 16, but trains nothing. "memory" is the peak of the resident set above its size before the corpus is read. "of it
private" leaves out the pages of mapped files, which the system takes back when it needs room. Needs the extra
`datasets`, a system with /proc, and 1 GB of disk per million rows.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

WAYS = ("in memory", "streamed", "streamed again", "streamed again, by_length")
SCENARIOS = ("e-commerce", "food", "take-out", "taxi", "ticket")
_CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 500)]
_CHUNK = 10_000  # rows
_BATCHES, _BATCH = 100, 16


def write_corpus(folder: Path, rows: int) -> None:
    """Write train.parquet with this number of rows, unless it is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (folder / "train.parquet").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    drawn = random.Random(0)
    schema = pa.schema(dict.fromkeys(("scenario", "dialogue", "summary"), pa.string()))
    with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
        for start in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - start)
            columns = {
                "scenario": [drawn.choice(SCENARIOS) for _ in range(size)],
                "dialogue": ["用户：" + "".join(drawn.choices(_CHARACTERS, k=97)) for _ in range(size)],
                "summary": ["".join(drawn.choices(_CHARACTERS, k=20)) for _ in range(size)],
            }
            writer.write_table(pa.table(columns, schema=schema))


def status() -> dict[str, float]:
    """Return the resident set and its private part in megabytes (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {"all": int(kilobytes["VmRSS"]) * 1024 / 1e6, "private": int(kilobytes["RssAnon"]) * 1024 / 1e6}


def watch(peak: dict[str, float], start: dict[str, float]) -> None:
    """Keep the largest growth of each number of `status` in `peak`, looked at every 10 ms until the process ends."""
    while True:
        for name, now in status().items():
            peak[name] = max(peak[name], now - start[name])
        time.sleep(0.01)


def measure(folder: Path, way: str) -> dict[str, Any]:
    """Return the memory and the time of one way to read the training rows."""
    import pyarrow.parquet  # noqa: F401  its own size is not that of the rows
    from mop_t5 import data
    from mop_t5.backbone.tokenizer import train_tokenizer
    from mop_t5.operations.contents import of_rows

    tokenizer = train_tokenizer(["用户：" + "".join(_CHARACTERS)] * 2, 700)
    tokenizer("用户")
    peak = {"all": 0.0, "private": 0.0}
    threading.Thread(target=watch, args=(peak, status()), daemon=True).start()
    started = time.perf_counter()
    in_memory = way == WAYS[0]
    rows = data.read_split(folder, "train") if in_memory else data.stream_split(folder, "train", folder / "rows")
    content = of_rows(rows)
    scenarios = data.scenarios_of(rows)
    encoded = data.EncodedExamples(rows, tokenizer, scenarios)
    lengths = encoded.lengths if way.endswith("by_length") else None
    ids = data.scenario_ids_of(rows, scenarios)
    sampler = data.TemperatureBatchSampler(ids, _BATCH, num_batches=_BATCHES, lengths=lengths)
    tokens, first = 0, 0.0
    for batch in sampler:
        tokens += sum(len(encoded[row]["input_ids"]) for row in batch)
        first = first or time.perf_counter() - started
    time.sleep(0.05)  # a last look
    return {**peak, "seconds": first, "tokens": tokens, "sha256": content["sha256"]}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--folder", help="keep the corpora here; a temporary folder if not given")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, way = options.one
        return print(json.dumps(measure(Path(folder), way)))
    with tempfile.TemporaryDirectory() as temporary:
        print("| rows | way | memory, MB | of it private, MB | bytes per row | until the first batch, s |")
        print("|---|---|---|---|---|---|")
        for rows in options.rows:
            folder = Path(options.folder or temporary) / f"{rows}-rows"
            write_corpus(folder, rows)
            sums = set()
            for way in options.ways:
                command = [sys.executable, "-m", "benchmarks.corpus_memory", "--one", str(folder), way]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                sums.add(found["sha256"])
                sizes = (found["all"], found["private"], 1e6 * found["private"] / rows)
                cells = [f"{rows:,}", way, *(f"{size:,.0f}" for size in sizes), f"{found['seconds']:,.1f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
            if len(sums) > 1:
                raise SystemExit(f"the rows differ between the ways: {sums}")
            stored = sum(path.stat().st_size for path in (folder / "rows").iterdir())
            parquet = (folder / "train.parquet").stat().st_size
            print(f"\n{rows:,} rows: train.parquet {parquet / 1e6:,.0f} MB, rows/ {stored / 1e6:,.0f} MB\n", flush=True)


if __name__ == "__main__":
    main()
