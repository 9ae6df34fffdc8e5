"""What the commands of `mop-t5` do: one function a command.

Its parameters are the flags and the keys of a configuration file, its docstring is the help. A parameter that is a
dataclass stands for all the fields of that class.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

import mop_t5
from mop_t5.data import SPLITS, Example, read_examples, read_split, scenarios_of
from mop_t5.demo import DemoConfig, run_demo
from mop_t5.evaluation import FLOORS, Rouge, by_scenario, generate_summaries, make_table, score_table, to_markdown
from mop_t5.methods import get
from mop_t5.tokenization import load_tokenizer
from mop_t5.training import (
    CHECKPOINTS,
    TrainingConfig,
    check_resumable,
    load_run,
    prepare_output,
    processes,
    read_history,
    read_settings,
    save_run,
    write_settings,
)
from mop_t5.training import train as train_model
from mop_t5.training.checkpoints import checkpoints
from mop_t5.training.seeds import history_table, seed_folders, spread_table


def train(
    training: TrainingConfig,
    corpus: str,
    backbone: str,
    output: str,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    implementation: str = "rouge_score",
    unit: str = "char",
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Train a method on a frozen backbone, or all weights of a backbone where no method is named.

    The output folder can be given to `evaluate` and `generate`; its run.json is the configuration with every default
    filled in, and `--config OUTPUT/run.json --output ANOTHER` repeats the run. torchrun trains on several devices.

      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --options.prefix_length 20
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --evaluate_every 500 --patience 3
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --seeds '[0, 1, 2]'
      torchrun --nproc_per_node 2 -m mop_t5.cli train --config train.yaml

    Args:
        corpus: folder with train.jsonl, and valid.jsonl if evaluate_every is set.
        backbone: folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub.
        output: folder for the result. It must be new or empty.
        method: name of the method to tune. Without it all weights of the backbone are trained.
        options: fields of the method, such as {"prefix_length": 20}; as flags --options.prefix_length 20.
        seeds: train once with each of these in place of seed, into OUTPUT/seed-N, and report mean and deviation.
        implementation: package that counts ROUGE when validating, "rouge_score" or "rouge".
        unit: what ROUGE counts when validating, "char", "jieba" or "jieba_hmm".
        overwrite: empty the output folder first if it holds an earlier run.
        resume: go on from the newest checkpoint in the output folder, with the same configuration but for steps,
            patience and the intervals.
    """
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other: one empties the folder that the other needs.")
    if method is None and options:
        raise ValueError("options are fields of a method. Name one with --method, or leave them out.")
    if seeds is not None and (len(seeds) < 2 or len(set(seeds)) != len(seeds)):
        raise ValueError(f"seeds must be two or more different integers, got {seeds}. For one run set seed.")
    team = processes()
    if not team.is_main_process:
        disable_progress_bar()  # that of loading weights
    examples = read_split(corpus, "train")
    valid = read_split(corpus, "valid") if training.evaluate_every else None
    rouge = Rouge(implementation, unit)
    tokenizer = load_tokenizer(backbone)

    def new_model(seed: int):
        model = mop_t5.load_backbone(backbone)
        set_seed(seed)  # attach draws the method's initial values
        if method is None:
            return model.requires_grad_(True)
        return mop_t5.attach(model, method, scenarios=scenarios_of(examples), **(options or {}))

    first = training.seed if seeds is None else seeds[0]
    model = new_model(first)  # raises what is wrong with the method before a folder is made
    resolved = {} if method is None else model.mop.config.to_dict()
    settings = {
        "corpus": str(Path(corpus).resolve()),
        "backbone": str(Path(backbone).resolve()) if Path(backbone).is_dir() else backbone,
        "method": method,
        "options": {name: value for name, value in resolved.items() if name != "scenarios"},
        "implementation": implementation,
        "unit": unit,
        "seeds": seeds,
        **asdict(training),
    }
    if resume:
        check_resumable(output, settings)
    prepare_output(output, overwrite=overwrite, keep=resume)
    if team.is_main_process:
        write_settings(output, settings)
    runs = {training.seed: Path(output)} if seeds is None else seed_folders(output, seeds)
    for seed, folder in runs.items():
        goes_on = resume and (seeds is None or bool(checkpoints(folder / CHECKPOINTS)))
        if resume and not goes_on and read_history(folder):
            continue  # finished, and without checkpoints
        if seed != first:
            model = new_model(seed)
        result = train_model(
            model,
            tokenizer,
            examples,
            replace(training, seed=seed),
            output=folder,
            valid=valid,
            rouge=rouge,
            resume=goes_on,
        )
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
        _show(table)
    print(f"Written to {output}. Next: mop-t5 evaluate --run {output}")


def evaluate(
    run: str,
    corpus: str | None = None,
    split: str = "test",
    backbone: str | None = None,
    floors: bool = True,
    implementation: str = "rouge_score",
    unit: str = "char",
    num_beams: int = 1,
    batch_size: int = 32,
    overwrite: bool = False,
) -> None:
    """Generate the summaries of one split and score them by ROUGE, per scenario and on average.

    Writes RUN/evaluation-SPLIT with results.md and predictions.jsonl. A run of several seeds is evaluated seed by seed,
    and RUN/evaluation-SPLIT.md has their mean and deviation.

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
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues generated from at once.
        overwrite: replace an earlier evaluation of this split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    rouge = Rouge(implementation, unit)
    seeds = read_settings(run).get("seeds")
    scores = {}
    for seed, folder in seed_folders(run, seeds).items() if seeds else [(None, Path(run))]:
        model, tokenizer, settings = load_run(folder, backbone)
        data = corpus or settings.get("corpus")
        if data is None:
            raise ValueError(f"{run} does not say which corpus it was made from. Pass --corpus.")
        examples = read_split(data, split)
        output = prepare_output(folder / f"evaluation-{split}", overwrite=overwrite)
        summaries = {name: make(examples, read_split(data, "train")) for name, make in FLOORS.items() if floors}
        system = settings.get("method") or "all weights"
        summaries[system] = generate_summaries(
            model, tokenizer, examples, batch_size=batch_size, num_beams=num_beams, progress=True, **_lengths(settings)
        )
        references, scenarios = [e.summary for e in examples], [e.scenario for e in examples]
        means = {name: by_scenario(rouge(references, texts), scenarios) for name, texts in summaries.items()}
        scores[seed] = means[system]
        title = f"{rouge}: R-1/R-2/R-L on {len(examples)} {split} rows, {num_beams} beam(s)"
        table = score_table(title, means)
        write_settings(output, {"run": str(folder), "corpus": data, "split": split, "num_beams": num_beams})
        (output / "results.md").write_text(to_markdown(table), encoding="utf-8")
        with open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
            for i, example in enumerate(examples):
                row = asdict(example) | {"predictions": {name: texts[i] for name, texts in summaries.items()}}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        _show(table)
        print(f"Written to {output}: results.md, predictions.jsonl.")
    if seeds:
        table = spread_table(f"{title}, {system}, mean and deviation (n - 1) of {len(seeds)} seeds", scores)
        (Path(run) / f"evaluation-{split}.md").write_text(to_markdown(table), encoding="utf-8")
        _show(table)


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
        model, tokenizer, examples, batch_size=batch_size, num_beams=num_beams, **_lengths(settings)
    )
    rows = [{"id": e.id, "scenario": e.scenario, "summary": text} for e, text in zip(examples, summaries)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.write(text)
    else:
        Path(output).write_text(text, encoding="utf-8")
        print(f"Written to {output}: {len(rows)} summaries.")


def params(
    backbone: str = "t5-pegasus-base",
    preset: str | None = "paper",
    methods: list[str] | None = None,
    scenarios: int = 5,
    options: dict[str, Any] | None = None,
) -> None:
    """Count what each method trains on a backbone. For a known backbone no weights are needed or made.

      mop-t5 params --preset paper --backbone t5-pegasus-base
      mop-t5 params --methods '[mop]' --scenarios 20 --preset null --options.prefix_length 80

    Args:
        backbone: a known architecture such as "t5-pegasus-base" or "mt5-base", or a backbone's folder.
        preset: preset for the methods that have presets; null for their own defaults.
        methods: names of the methods; all if not given.
        scenarios: how many scenarios there are.
        options: fields for the methods that have them, such as {"prefix_length": 80}.
    """
    if scenarios < 1:
        raise ValueError(f"scenarios must be at least 1, got {scenarios}.")
    build = mop_t5.build_backbone if backbone in mop_t5.known_backbones() else None
    if build is None and not Path(backbone).is_dir():
        known = ", ".join(mop_t5.known_backbones())
        raise ValueError(f"backbone must be a folder or one of {known}; got {backbone!r}.")
    given = dict(options or {}) | ({"preset": preset} if preset is not None else {})
    model = build(backbone, device="meta") if build else mop_t5.load_backbone(backbone)
    chosen = {name: {field.name for field in fields(get(name).Config)} for name in methods or mop_t5.methods()}
    unknown = sorted(set(given) - {"preset"} - set().union(*chosen.values()))
    if unknown:
        raise ValueError(f"no method has the field {', '.join(unknown)}. `mop-t5 train` names a method's fields.")
    rows = []
    for name, valid in chosen.items():
        own = {key: value for key, value in given.items() if key in valid}
        mop_t5.attach(model, name, scenarios=[f"scenario {i + 1}" for i in range(scenarios)], **own)
        count = mop_t5.count_parameters(model)
        rows.append((name, f"{count.trained:,}", f"{100 * count.share:.4f} %", f"{count.total / count.backbone:.4f}"))
        backbone_size = count.backbone
        mop_t5.detach(model)
    title = f"{backbone}: {backbone_size:,} parameters, {scenarios} scenarios, preset {preset}"
    _show(make_table(title, ["method", "trained", "share of the backbone", "total / backbone"], rows))


def demo(config: DemoConfig) -> None:
    """Train a small T5 from nothing, freeze it, tune it by each method, and compare: a few minutes on two CPU cores.

    The corpus is a synthetic one unless --corpus names another. The backbone is trained on half of the training pairs
    without the scenario, the methods on the other half.

      mop-t5 demo
      mop-t5 demo --corpus DIR --output runs/mine --vocab_size 4000 --max_source 256
      mop-t5 demo --short --output runs/short
    """
    run_demo(config)


def _lengths(settings: dict) -> dict[str, int]:
    names = {"max_source": "max_source", "max_target": "max_new_tokens"}
    return {argument: settings[field] for field, argument in names.items() if field in settings}


def _show(table: Table) -> None:
    console = Console()
    # wider than most terminals that are not one: a log file must not cut the table
    Console(width=max(console.width, 140)).print(table)
