"""mop-t5 generate"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mop_t5.data import Example, read_examples
from mop_t5.evaluation import generate_summaries
from mop_t5.training import load_run


def generate(
    run: str,
    input: str | None = None,
    dialogue: str | None = None,
    scenario: str | None = None,
    output: str | None = None,
    backbone: str | None = None,
    num_beams: int = 1,
    batch_size: int = 32,
    overwrite: bool = False,
) -> None:
    """Write summaries of the dialogues in a file, or of one dialogue.

    A file has the corpus format; its summaries may be missing. Each line of the output is a JSON object with id,
    scenario and summary.

      mop-t5 generate --run runs/mop --input new.jsonl --output summaries.jsonl
      mop-t5 generate --run runs/mop --scenario taxi --dialogue '用户：司机绕路了。'

    Args:
        run: folder that `mop-t5 train` wrote.
        input: .jsonl or .jsonl.gz file of dialogues with their scenarios.
        dialogue: one dialogue instead of a file.
        scenario: the scenario of that dialogue.
        output: file for the result; standard output if not given.
        backbone: folder of the backbone, if it has moved since the run.
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues generated from at once.
        overwrite: replace the output file if it exists.
    """
    if (input is None) == (dialogue is None):
        raise ValueError("give either --input FILE or --dialogue TEXT with --scenario NAME.")
    if dialogue is not None and scenario is None:
        raise ValueError("--dialogue needs --scenario, the scenario that it is of.")
    if output is not None and Path(output).exists() and not overwrite:
        raise FileExistsError(f"{output} exists. Choose another --output or pass --overwrite.")
    one = [] if dialogue is None else [Example(scenario, dialogue, "", "dialogue")]
    examples = one or read_examples(input, need_summary=False)
    model, tokenizer, settings = load_run(run, backbone)
    summaries = generate_summaries(
        model, tokenizer, examples, batch_size=batch_size, num_beams=num_beams, **lengths(settings)
    )
    rows = [{"id": e.id, "scenario": e.scenario, "summary": text} for e, text in zip(examples, summaries)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.write(text)
    else:
        Path(output).write_text(text, encoding="utf-8")
        print(f"Written to {output}: {len(rows)} summaries.")


def lengths(settings: dict) -> dict[str, int]:
    """The lengths that a run was trained with, as generate_summaries calls them."""
    names = {"max_source": "max_source", "max_target": "max_new_tokens"}
    return {argument: settings[field] for field, argument in names.items() if field in settings}
