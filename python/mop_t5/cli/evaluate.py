"""Score a trained run: `mop-t5 evaluate`."""

from pathlib import Path

from mop_t5.evaluation import Rouge, show, to_markdown
from mop_t5.evaluation.run_evaluation import RunEvaluation, evaluation_folder
from mop_t5.evaluation.tables import spread_table
from mop_t5.files import replace_file
from mop_t5.operations.run_folder import check_output, read_settings, seed_folders


def evaluate(
    rouge: Rouge,
    run: str,
    corpus: str | None = None,
    split: str = "test",
    backbone: str | None = None,
    floors: bool = True,
    num_beams: int = 1,
    batch_size: int = 32,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Generate the summaries of one split and score them, per scenario and on average.

    Scores are ROUGE, or the metrics that tasks.yaml in the corpus names for a task.

    Writes RUN/evaluation-SPLIT with results.md, predictions.jsonl and scores.json. A run of several seeds is evaluated
    seed by seed, and RUN/evaluation-SPLIT.md has the mean and the deviation over the seeds.

      mop-t5 evaluate --run runs/mop
      mop-t5 evaluate --run runs/mop --split valid --num_beams 4 --unit jieba --overwrite

    Args:
        rouge: how ROUGE is counted.
        run: folder that `mop-t5 train` wrote.
        corpus: corpus folder or dataset on the hub, if not the corpus of the run.
        split: "train", "valid" or "test".
        backbone: folder of the backbone, if it has moved since the run.
        floors: also score the baselines: the first user turn, a random and the nearest training reference.
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues per batch.
        overwrite: replace an earlier evaluation of this split.
        dry_run: only print what would be done.
    """
    seeds = read_settings(run).get("seeds")
    folders = [Path(run)] if not seeds else list(seed_folders(run, seeds).values())
    for folder in folders:  # an error for the last seed must come before the first is evaluated
        check_output(evaluation_folder(folder, split), overwrite=overwrite)
    scores = []
    for folder in folders:
        evaluation = RunEvaluation(
            folder,
            corpus=corpus,
            split=split,
            backbone=backbone,
            baselines=floors,
            rouge=rouge,
            num_beams=num_beams,
            batch_size=batch_size,
            overwrite=overwrite,
        )
        if dry_run:
            print(evaluation.describe())
            continue
        done = evaluation.run()
        scores.append(done.scores)
        show(done.table)
        print(f"Written to {done.folder}: results.md, predictions.jsonl, scores.json.")
    if seeds and not dry_run:
        title = f"{evaluation.title}, {evaluation.system}, mean and deviation (n - 1) of {len(seeds)} seeds"
        table = spread_table(title, scores)
        replace_file(Path(f"{evaluation_folder(run, split)}.md"), to_markdown(table).encode())
        show(table)
