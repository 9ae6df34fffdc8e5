"""Score a trained run: `mop-t5 evaluate`."""

from dataclasses import replace
from pathlib import Path

from mop_t5.evaluation import Rouge, show, to_markdown
from mop_t5.evaluation.run_evaluation import EvaluationConfig, RunEvaluation, evaluation_folder
from mop_t5.evaluation.tables import spread_table
from mop_t5.files import replace_file
from mop_t5.operations.run_folder import check_output, read_settings, seed_folders


def evaluate(config: EvaluationConfig, rouge: Rouge) -> None:
    """Generate the summaries of one split and score them, per scenario and on average.

    Scores are ROUGE, or the metrics that tasks.yaml in the corpus names for a task.

    Writes RUN/evaluation-SPLIT with results.md, predictions.jsonl and scores.json. A run of several seeds is evaluated
    seed by seed, and RUN/evaluation-SPLIT.md has the mean and the deviation over the seeds.

      mop-t5 evaluate --run runs/mop
      mop-t5 evaluate --run runs/mop --split valid --num_beams 4 --unit jieba --overwrite

    Args:
        config: what is evaluated.
        rouge: how ROUGE is counted.
    """
    run, split, seeds = config.run, config.split, read_settings(config.run).get("seeds")
    folders = [Path(run)] if not seeds else list(seed_folders(run, seeds).values())
    for folder in folders:  # an error for the last seed must come before the first is evaluated
        check_output(evaluation_folder(folder, split), overwrite=config.overwrite)
    results = []
    for folder in folders:
        evaluation = RunEvaluation(replace(config, run=str(folder)), rouge)
        if config.dry_run:
            print(evaluation.describe())
            continue
        scores, table = evaluation.run()
        results.append(scores)
        show(table)
        print(f"Written to {evaluation.folder}: results.md, predictions.jsonl, scores.json.")
    if seeds and not config.dry_run:
        title = f"{evaluation.title}, {evaluation.system}, mean and deviation (n - 1) of {len(seeds)} seeds"
        table = spread_table(title, results)
        replace_file(Path(f"{evaluation_folder(run, split)}.md"), to_markdown(table).encode())
        show(table)
