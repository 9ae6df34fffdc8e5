"""mop-t5 train"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

import mop_t5
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.data import of_scenarios, read_split, read_tasks, scenarios_of
from mop_t5.evaluation import Rouge, Scorer, show, to_markdown
from mop_t5.evaluation.lost_characters import warn_of_lost_characters
from mop_t5.methods.parts.base import MethodConfig
from mop_t5.operations import contents
from mop_t5.training import (
    CHECKPOINTS,
    TrainingConfig,
    check_resumable,
    describe_output,
    prepare_output,
    processes,
    read_history,
    read_settings,
    save_run,
    write_settings,
)
from mop_t5.training import train as train_model
from mop_t5.training.checkpoints import checkpoints
from mop_t5.training.run import SETTINGS
from mop_t5.training.seeds import history_table, seed_folders


def train(
    training: TrainingConfig,
    corpus: str,
    backbone: str,
    output: str,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    scenarios: list[str] | None = None,
    seeds: list[int] | None = None,
    implementation: str = "rouge_score",
    unit: str = "char",
    normalise: str = "none",
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a method on a frozen backbone, or all weights of a backbone where no method is named.

    The output folder can be given to `evaluate` and `generate`; its run.json is the configuration with every default
    filled in, and `--config OUTPUT/run.json --output ANOTHER` repeats the run. torchrun trains on several devices.

      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --options.prefix_length 20
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --evaluate_every 500 --patience 3
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --seeds '[0, 1, 2]'
      torchrun --nproc_per_node 2 -m mop_t5.cli.main train --config train.yaml

    Args:
        corpus: folder with train.jsonl, and valid.jsonl if evaluate_every is set.
        backbone: folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub.
        output: folder for the result. It must be new or empty.
        method: name of the method to tune. Without it all weights of the backbone are trained.
        options: fields of the method, such as {"prefix_length": 20}; as flags --options.prefix_length 20.
        scenarios: train and validate on the rows of these scenarios only, such as '[taxi]'; all if not given.
        seeds: train once with each of these in place of seed, into OUTPUT/seed-N, and report mean and deviation.
        implementation: package that counts ROUGE when validating, "rouge_score" or "rouge".
        unit: what ROUGE counts when validating, "char", "jieba" or "jieba_hmm".
        normalise: form in which both sides are compared when validating, "none" or "nfkc" (full-width punctuation and
            digits equal the others).
        overwrite: empty the output folder first if it holds an earlier run.
        resume: go on from the newest checkpoint in the output folder, with the same configuration but for steps,
            patience and the intervals, and on the same rows and backbone, wherever their folders are now.
        dry_run: only say what would be done.
    """
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other: one empties the folder that the other needs.")
    if method is None and options:
        raise ValueError("options are fields of a method. Name one with --method, or leave them out.")
    if seeds is not None and (len(seeds) < 2 or len(set(seeds)) != len(seeds)):
        raise ValueError(f"seeds must be two or more different integers, got {seeds}. For one run set seed.")
    for seed in seeds or ():
        replace(training, seed=seed)  # raises what is wrong with it, before the first is trained
    team = processes()
    if not team.is_main_process:
        disable_progress_bar()  # that of loading weights
    if scenarios is not None and not scenarios:
        raise ValueError("scenarios must name at least one scenario, got none. Leave it out for all.")
    rows = read_split(corpus, "train")
    examples = of_scenarios(rows, scenarios)
    valid = of_scenarios(read_split(corpus, "valid"), scenarios) if training.evaluate_every else None
    scorer = Scorer(Rouge(implementation, unit, normalise), read_tasks(corpus, scenarios_of(rows)))
    tokenizer = load_tokenizer(backbone)
    if valid and team.is_main_process:
        warn_of_lost_characters(tokenizer, valid, scorer, "valid")

    def new_model(seed: int):
        model = mop_t5.load_backbone(backbone)
        set_seed(seed)  # attach draws the method's initial values
        if method is None:
            return model.requires_grad_(True)
        return mop_t5.attach(model, method, scenarios=scenarios_of(examples), **(options or {}))

    first = training.seed if seeds is None else seeds[0]
    model = new_model(first)  # raises what is wrong with the method before a folder is made
    config = None if method is None else model.mop.config
    settings = settings_of(training, corpus, backbone, method, config, scenarios, seeds, scorer.rouge)
    made_of = contents.of_training(examples, valid, scorer.tasks, config) | contents.of_backbone(model, tokenizer)
    recorded = made_of
    if resume:
        check_resumable(output, settings)
        known = contents.check_same_contents(output, made_of)
        if not known and team.is_main_process:
            contents.warn_of_unknown(output)
        recorded = made_of | contents.read_contents(output) if known else None
    runs = {training.seed: Path(output)} if seeds is None else seed_folders(output, seeds)
    if resume and seeds is not None:
        _check_steps(runs.values(), training.steps)
    if dry_run:
        state = describe_output(output, overwrite=overwrite, keep=resume)
        if team.is_main_process:
            print(_plan(training, model, len(examples), len(valid or ()), runs if resume else {}), state, sep="\n")
        return
    prepare_output(output, overwrite=overwrite, keep=resume)
    if team.is_main_process:
        if not read_history(output):  # else run.json goes on to describe the weights that are there, until others are
            write_settings(output, settings)
        if recorded is not None:
            contents.write_contents(output, recorded)
    for seed, folder in runs.items():
        goes_on = resume and (seeds is None or bool(checkpoints(folder / CHECKPOINTS)))
        if resume and not goes_on and _finished(folder):
            continue
        if seed != first:
            model = new_model(seed)
        if team.is_main_process and seeds is not None and not goes_on:
            folder.mkdir(exist_ok=True)
            contents.write_contents(folder, made_of)
        try:
            result = train_model(
                model,
                tokenizer,
                examples,
                replace(training, seed=seed),
                output=folder,
                valid=valid,
                scorer=scorer,
                resume=goes_on,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_interrupted(output, folder, seeds)) from None
        if team.is_main_process:
            save_run(folder, model, tokenizer, result, settings | {"seed": seed, "seeds": None})
        team.wait_for_everyone()
    if not team.is_main_process:
        return
    count = mop_t5.count_parameters(model)
    trained = f"Trained {count.trained:,} parameters, {100 * count.share:.4f} % of the backbone's {count.backbone:,}"
    if seeds is None:
        losses = [loss for _, loss in result.losses]
        seconds = f"{training.steps} steps of {result.seconds_per_step:.3f} s"
        print(f"{trained}, for {seconds}; loss {losses[0]:.3f} -> {losses[-1]:.3f}.")
    else:
        print(f"{trained}, with each of {len(seeds)} seeds.")
        table = history_table({seed: read_history(folder) for seed, folder in runs.items()})
        (Path(output) / "results.md").write_text(to_markdown(table), encoding="utf-8")
        show(table)
    print(f"Written to {output}. Next: mop-t5 evaluate --run {output}")


def _plan(training: TrainingConfig, model, rows: int, valid: int, runs: dict[int, Path]) -> str:
    """What would be trained, and from where."""
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lines = [
        f"Would train {count:,} parameters for {training.steps} steps of {training.batch_size * training.accumulation} "
        f"rows on {rows} rows"
        + (f", validated on {valid} every {training.evaluate_every} steps." if valid else ", without validation.")
    ]
    for seed, folder in runs.items():
        whole = checkpoints(folder / CHECKPOINTS)
        state = f"from {whole[-1].name}" if whole else "finished" if _finished(folder) else "from the start"
        lines.append(f"Seed {seed}, {folder}: {state}.")
    return "\n".join(lines)


def _finished(folder: Path) -> bool:
    return (folder / SETTINGS).is_file() and bool(read_history(folder))


def _check_steps(folders: Iterable[Path], steps: int) -> None:
    """Raise ValueError for a run that ended after another number of steps and left nothing to go on from."""
    for folder in folders:
        if not _finished(folder) or checkpoints(folder / CHECKPOINTS):
            continue
        if (ended := read_settings(folder).get("steps")) != steps:
            raise ValueError(
                f"{folder} ended after {ended} steps without a checkpoint, so it cannot go on to {steps}. Set steps "
                f"to {ended}, or start anew with another --output."
            )


def _interrupted(output: str, folder: Path, seeds: list[int] | None) -> str:
    """What is left of a training that Ctrl-C stopped, and how to go on."""
    whole = checkpoints(folder / CHECKPOINTS)
    if not whole and seeds is None:
        return f"interrupted before a checkpoint in {output}. Start anew with --overwrite, and with --save_every."
    kept = f"{whole[-1]} is kept" if whole else "the seeds that had ended are kept"
    return f"interrupted; {kept}, and the same command goes on with --resume."


def settings_of(
    training: TrainingConfig,
    corpus: str,
    backbone: str,
    method: str | None,
    config: MethodConfig | None,
    scenarios: list[str] | None,
    seeds: list[int] | None,
    rouge: Rouge,
) -> dict[str, Any]:
    """Return what run.json says of a run.

    config: That of the method, with its defaults filled in. rouge: What validations count by.
    """
    options = {} if config is None else config.to_dict()
    return {
        "corpus": str(Path(corpus).resolve()),
        "backbone": str(Path(backbone).resolve()) if Path(backbone).is_dir() else backbone,
        "method": method,
        "options": {name: value for name, value in options.items() if name != "scenarios"},
        "scenarios": scenarios,
        "implementation": rouge.implementation,
        "unit": rouge.unit,
        "normalise": rouge.normalise,
        "seeds": seeds,
        **asdict(training),
    }
