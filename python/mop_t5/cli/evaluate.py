"""mop-t5 evaluate"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mop_t5.cli.generate import lengths
from mop_t5.data import SPLITS, Example, of_scenarios, read_split, read_tasks
from mop_t5.evaluation import (
    FLOORS,
    Rouge,
    Scorer,
    generate_summaries,
    score_table,
    show,
    to_markdown,
    write_scores,
)
from mop_t5.evaluation.lost_characters import warn_of_lost_characters
from mop_t5.files import failure_in_a_sentence
from mop_t5.operations.contents import Content, of_rows, write_contents
from mop_t5.training import check_output, describe_output, load_run, prepare_output, read_settings, write_settings
from mop_t5.training.run import content_of_weights
from mop_t5.training.seeds import seed_folders, spread_table


def evaluate(
    run: str,
    corpus: str | None = None,
    split: str = "test",
    backbone: str | None = None,
    floors: bool = True,
    implementation: str = "rouge_score",
    unit: str = "char",
    normalise: str = "none",
    num_beams: int = 1,
    batch_size: int = 32,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Generate the summaries of one split and score them, per scenario and on average.

    They are scored by ROUGE, or by the metrics that tasks.yaml in the corpus names for a task.

    Writes RUN/evaluation-SPLIT with results.md, predictions.jsonl and scores.json. A run of several seeds is evaluated
    seed by seed, and RUN/evaluation-SPLIT.md has their mean and deviation.

      mop-t5 evaluate --run runs/mop
      mop-t5 evaluate --run runs/mop --split valid --num_beams 4 --unit jieba --overwrite

    Args:
        run: folder that `mop-t5 train` wrote.
        corpus: corpus folder, if not the one of the run.
        split: "train", "valid" or "test".
        backbone: folder of the backbone, if it has moved since the run.
        floors: also score the first user turn, a random and the nearest training reference.
        implementation: package that counts ROUGE, "rouge_score" or "rouge".
        unit: what ROUGE counts, "char", "jieba" or "jieba_hmm".
        normalise: form in which both sides are compared, "none" or "nfkc" (full-width punctuation and digits equal the
            others).
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues generated from at once.
        overwrite: replace an earlier evaluation of this split.
        dry_run: only say what would be done.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    for name, size in {"num_beams": num_beams, "batch_size": batch_size}.items():
        if size < 1:  # said before --overwrite empties a folder
            raise ValueError(f"{name} must be at least 1, got {size}.")
    rouge = Rouge(implementation, unit, normalise)
    seeds = read_settings(run).get("seeds")
    folders = seed_folders(run, seeds) if seeds else {None: Path(run)}
    for folder in folders.values():  # all of them before the first takes its time
        check_output(folder / f"evaluation-{split}", overwrite=overwrite)
    scores = {}
    for seed, folder in folders.items():
        model, tokenizer, settings = load_run(folder, backbone, on_accelerator=True)
        data = corpus or settings.get("corpus")
        if data is None:
            raise ValueError(f"{run} does not say which corpus it was made from. Pass --corpus.")
        examples = of_scenarios(read_split(data, split), settings.get("scenarios"))
        scorer = Scorer(rouge, read_tasks(data))
        output = folder / f"evaluation-{split}"
        if dry_run:
            state = describe_output(output, overwrite=overwrite)
            print(f"Would score {len(examples)} {split} rows of {data} with {num_beams} beam(s), by {scorer}.")
            print(state)
            continue
        prepare_output(output, overwrite=overwrite)
        lost = warn_of_lost_characters(tokenizer, examples, scorer, split)
        summaries = {name: make(examples, read_split(data, "train")) for name, make in FLOORS.items() if floors}
        system = settings.get("method") or "all weights"
        summaries[system] = generate_summaries(
            model, tokenizer, examples, batch_size=batch_size, num_beams=num_beams, progress=True, **lengths(settings)
        )
        means = {name: scorer(examples, texts) for name, texts in summaries.items()}
        scores[seed] = means[system]
        title = f"{scorer} on {len(examples)} {split} rows, {num_beams} beam(s)"
        table = score_table(title, means, notes=[*scorer.remarks(examples, summaries), *lost])
        with failure_in_a_sentence("the evaluation", output):
            write_settings(
                output,
                {
                    "run": str(folder),
                    "corpus": data,
                    "split": split,
                    "num_beams": num_beams,
                    "implementation": implementation,
                    "unit": unit,
                    "normalise": normalise,
                }
                | metrics_of(scorer),
            )
            write_contents(output, evaluated(folder, examples, split))
            (output / "results.md").write_text(to_markdown(table), encoding="utf-8")
            with open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
                for i, example in enumerate(examples):
                    row = example.row() | {"predictions": {name: texts[i] for name, texts in summaries.items()}}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            write_scores(output, means)  # the last file: its presence says that the evaluation is complete
        show(table)
        print(f"Written to {output}: results.md, predictions.jsonl, scores.json.")
    if seeds and not dry_run:
        table = spread_table(f"{title}, {system}, mean and deviation (n - 1) of {len(seeds)} seeds", scores)
        (Path(run) / f"evaluation-{split}.md").write_text(to_markdown(table), encoding="utf-8")
        show(table)


def evaluated(run: Path, examples: Sequence[Example], split: str) -> dict[str, Content]:
    """Return what an evaluation is of: the rows, and the training that ended with the weights of the run folder."""
    return {split: of_rows(examples), **content_of_weights(run)}


def metrics_of(scorer: Scorer) -> dict[str, dict]:
    """What run.json of an evaluation says of tasks with metrics of their own; empty where there are none."""
    return {"metrics": {name: task.to_dict() for name, task in scorer.tasks.items()}} if scorer.tasks else {}
