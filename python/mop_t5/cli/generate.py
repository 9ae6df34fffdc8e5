"""Write summaries of new dialogues: `mop-t5 generate`."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from mop_t5.checks import check_int
from mop_t5.data.arrow_tables import is_arrow, row_count
from mop_t5.data.lines import open_binary, stem_of
from mop_t5.evaluation.generation import lengths_of, scenarios_needed
from mop_t5.evaluation.requests import Request, filled_lines, request_of, requests_in, requests_in_table
from mop_t5.evaluation.serving import Counts, Summariser, check_kept, opened_output, summarise
from mop_t5.operations.run_folder import load_run

NOT_ALL = 3  # exit code if some lines have no summary
_STREAM = "-"


def generate(
    run: str,
    input: str | None = None,
    dialogue: str | None = None,
    scenario: str | None = None,
    output: str | None = None,
    backbone: str | None = None,
    num_beams: int = 1,
    batch_size: int = 32,
    window: int = 256,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> int:
    """Write summaries of the dialogues in a file or a stream, or of one dialogue.

    Each line of the input is a JSON object with scenario and dialogue, possibly with an id. The rows of a Parquet or
    Arrow file are read as such lines. Each line gives one line of output, in the same order: a JSON object with id,
    scenario and summary, or with an error and "summary": null. A wrong line does not end the run. Exit codes: 0, all
    lines have a summary; 3, some have none; 1, the run failed; 130, Ctrl-C.

      mop-t5 generate --run runs/mop --input new.jsonl --output summaries.jsonl
      mop-t5 generate --run runs/mop --input new.jsonl --output summaries.jsonl --resume
      tail -f new.jsonl | mop-t5 generate --run runs/mop --input -
      mop-t5 generate --run runs/mop --scenario taxi --dialogue '用户：司机绕路了。'

    Args:
        run: folder that `mop-t5 train` wrote.
        input: .jsonl, .jsonl.gz, .parquet or .arrow file of dialogues with their scenarios; - is standard input.
        dialogue: one dialogue instead of a file.
        scenario: the scenario of that dialogue.
        output: file for the result; standard output if not given.
        backbone: folder of the backbone, if it has moved since the run.
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues per batch.
        window: dialogues that are read together, sorted by length into batches, and written together.
        resume: keep the complete lines of an existing output, and continue after them.
        overwrite: replace the output file if it exists.
        dry_run: read and check the whole input, print what would be done, and write nothing.
    """
    target = None if output is None else Path(output)
    if (input is None) == (dialogue is None):
        raise ValueError("give either --input FILE or --dialogue TEXT with --scenario NAME.")
    if dialogue is not None and scenario is None:
        raise ValueError("--dialogue needs --scenario, the scenario of the dialogue.")
    for name, size in {"window": window, "batch_size": batch_size, "num_beams": num_beams}.items():
        check_int(name, size, 1)
    _check_files(input, target, resume, overwrite)
    model, tokenizer, settings = load_run(run, backbone, on_accelerator=True)
    search = {"num_beams": num_beams, **lengths_of(settings)}
    summariser = Summariser(model, tokenizer, settings.get("options") or {}, search, batch_size)
    requests, total = _requests(input, dialogue, scenario, scenarios_needed(model))
    counts, position, where = Counts(), 0, output or "standard output"
    if resume and target is not None and target.exists():
        position = check_kept(target, requests, summariser.key, counts)
        print(f"{counts.lines:,} lines are already in {target}.", file=sys.stderr)
    try:
        with nullcontext() if dry_run else opened_output(target, position) as out:
            rate = summarise(summariser, requests, out, counts, window=window, total=total)
    except KeyboardInterrupt:
        cure = "" if target is None else "; resume it with --resume"
        raise KeyboardInterrupt(f"interrupted; {counts.lines:,} lines are in {where}{cure}.") from None
    verb, speed = ("Would write", "") if dry_run else ("Written", f"; dialogues per second: {rate:.1f}")
    print(f"{verb} to {where}, {counts}{speed}.", file=sys.stderr)
    return NOT_ALL if counts.failed else 0


def _check_files(input: str | None, target: Path | None, resume: bool, overwrite: bool) -> None:
    if input not in (None, _STREAM) and (not Path(input).exists() or Path(input).is_dir()):
        raise FileNotFoundError(
            f"no file at {input}. Give a .jsonl, .jsonl.gz, .parquet or .arrow file, or - for standard input."
        )
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: one keeps the output, the other replaces it.")
    if target is None:
        if resume or overwrite:
            raise ValueError("--resume and --overwrite need --output, the file to keep or to replace.")
        return
    if target.suffix == ".gz":
        raise ValueError(
            f"--output must be plain text, so that --resume can continue it; compress {target.stem} afterwards."
        )
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is no regular file. Choose another --output, or leave it out and redirect.")
    if target.exists() and input not in (None, _STREAM) and target.samefile(input):
        raise FileExistsError(f"{target} is also the input. Choose another --output.")
    if target.exists() and not (resume or overwrite):
        raise FileExistsError(
            f"{target} exists. Choose another --output, pass --resume to continue it, or --overwrite."
        )


def _requests(
    input: str | None, dialogue: str | None, scenario: str | None, known: Sequence[str] | None
) -> tuple[Iterator[Request], int | None]:
    """Return the requests, and their number. The number is None if it is unknown, as for a stream."""
    if dialogue is not None:
        line = json.dumps({"scenario": scenario, "dialogue": dialogue})
        request = request_of(line.encode(), "--dialogue", "dialogue", known)
        if request.error is not None:
            raise ValueError(request.error)
        return iter([request]), 1
    if input is None or input == _STREAM:
        # Python locks sys.stdin.buffer when it ends, and the thread that waits for a line would hold this lock
        return requests_in(open(sys.stdin.fileno(), "rb", closefd=False), "standard input", "stdin", known), None
    path, total = Path(input), None
    with suppress(ValueError):  # damaged gzip data is reported after the lines before it
        if path.is_file() and is_arrow(path):
            total = row_count(path)
        elif path.is_file():
            with open_binary(path) as file:
                total = sum(1 for _ in filled_lines(file, input))
    if is_arrow(path):
        return requests_in_table(path, known), total
    return requests_in(open_binary(path), input, stem_of(path.name), known), total
