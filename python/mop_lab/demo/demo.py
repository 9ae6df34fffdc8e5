"""The whole of mop_t5 in a few minutes on a CPU, from nothing: `mop-t5 demo`.

No pretrained weights are needed. A small T5 is trained on half of the training pairs, with the scenario not given, and
frozen. Each method then tunes it on the other half with equal steps. All are scored on the test split, beside the
frozen backbone and beside floors that no model made.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mop_t5.backbone.build import build_backbone
from mop_t5.backbone.load import freeze
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import TASKS, Example, read_corpus, read_tasks, scenarios_of, synthetic_corpus, write_examples
from mop_t5.evaluation import (
    Rouge,
    Scorer,
    Table,
    baseline_texts,
    generate_summaries,
    number_recall,
    plot_losses,
    score_table,
    show,
    to_markdown,
    write_predictions,
)
from mop_t5.operations.attach import attach, count_parameters, detach
from mop_t5.operations.run_folder import describe_output, prepare_output, save_run, write_settings
from mop_t5.training import TrainingConfig, TrainingResult, train
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config, set_seed

from mop_lab.demo.copying import turns_to_repeat, with_other_values

_HEAD = 16  # many narrow heads learn to copy values in fewer steps than four wide ones
# OUTPUT/corpus is a corpus to tune on, with what the backbone has seen beside it: file -> split
_FILES = {"general": "general", "train": "tuning", "valid": "valid", "test": "test"}


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo. The defaults are for the synthetic corpus and two CPU cores.

    Args:
        output: folder for everything that is written.
        overwrite: empty the output folder first if it holds an earlier demo.
        dry_run: only say what would be done.
        corpus: a corpus folder to use instead of the synthetic corpus.
        short: a few steps on a few rows: shows that everything runs, not what it can do.
        methods: the methods to tune, in the order of the table's columns.
        options: fields of the methods, such as {"mop": {"prefix_length": 20}}.
        copying_steps: steps before, in which the backbone learns to repeat single turns of its dialogues. 0: none.
        copies: of each pair that the backbone is trained on, with other values in place of those that dialogue and
            summary share, beside the pair as it is. 0: none.
        backbone_steps: steps in which the backbone is trained.
        backbone_rate: highest learning rate of these steps.
        tuning_steps: steps in which each method is tuned.
        tuning_rate: highest learning rate of these steps.
        batch_size: rows a step, everywhere.
        d_model: width of the backbone.
        layers: encoder layers of the backbone, and as many decoder layers.
        vocab_size: size of the vocabulary that is learnt from the training split.
        max_source: dialogue tokens kept.
        max_target: summary tokens kept and generated.
        implementation: package that counts ROUGE, "rouge_score" or "rouge".
        unit: what ROUGE counts, "char", "jieba" or "jieba_hmm".
        normalise: form in which both sides are compared, "none" or "nfkc" (full-width punctuation and digits equal the
            others).
        seed: of everything that is random.
    """

    output: str = "runs/demo"
    overwrite: bool = False
    dry_run: bool = False
    corpus: str | None = None
    short: bool = False
    methods: list[str] = field(default_factory=lambda: ["mop", "prefix_tuning"])
    options: dict[str, dict] = field(
        default_factory=lambda: {
            "mop": {"prefix_length": 16, "d_mid": 64, "terms_down": 8, "terms_up": 8},
            "prefix_tuning": {"prefix_length": 16, "d_mid": 64},
        }
    )
    copying_steps: int = 0
    copies: int = 0
    backbone_steps: int = 1500
    backbone_rate: float = 2e-3
    tuning_steps: int = 300
    tuning_rate: float = 5e-3
    batch_size: int = 16
    d_model: int = 128
    layers: int = 2
    vocab_size: int = 1100
    max_source: int = 128
    max_target: int = 64
    implementation: str = "rouge_score"
    unit: str = "char"
    normalise: str = "none"
    seed: int = 0

    def __post_init__(self):
        for name in ("backbone_steps", "tuning_steps", "batch_size", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("copying_steps", "copies"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.d_model < _HEAD or self.d_model % _HEAD:
            raise ValueError(f"d_model must be a multiple of {_HEAD}, the width of a head; got {self.d_model}.")


class _System(NamedTuple):
    """What is one column of the table."""

    summaries: list[str]
    trained: int | None = None
    result: TrainingResult | None = None


class _Splits(NamedTuple):
    general: list[Example]  # to train the backbone on
    tuning: list[Example]  # to tune the methods on
    valid: list[Example]
    test: list[Example]
    known: list[Example]  # whose references the floors may use


def run_demo(config: DemoConfig, console: Console | None = None) -> Path:
    """Run the demo, say on `console` what is happening, and return the output folder.

    Raises FileExistsError for an output folder with content, and whatever reading the corpus raises.
    """
    console = console or Console()
    tasks = read_tasks(config.corpus) if config.corpus else None
    scorer = Scorer(Rouge(config.implementation, config.unit, config.normalise), tasks)
    if config.short:
        copying = min(10, config.copying_steps)
        config = replace(config, copying_steps=copying, backbone_steps=30, tuning_steps=10, d_model=64)
    splits = _synthetic(config) if config.corpus is None else _halved(config)
    scenarios = scenarios_of(splits.general + splits.tuning)
    _check_methods(config, scenarios)
    if config.dry_run:
        copying = f"{config.copying_steps} steps of copying, then " if config.copying_steps else ""
        sizes = f"{copying}{len(splits.general)} pairs for {config.backbone_steps} steps, then "
        sizes += f"{', '.join(config.methods)} on {len(splits.tuning)} others for {config.tuning_steps} steps each, "
        sizes += f"and score {len(splits.test)} rows"
        console.print(f"Would train a new T5 on {sizes}.", soft_wrap=True, highlight=False, markup=False)
        state = describe_output(config.output, overwrite=config.overwrite)
        console.print(state, soft_wrap=True, highlight=False, markup=False)
        return Path(config.output)
    output = prepare_output(config.output, overwrite=config.overwrite)
    write_settings(output, asdict(config))
    for name, split in _FILES.items():
        write_examples(output / "corpus" / f"{name}.jsonl", getattr(splits, split))
    if config.corpus is not None and (Path(config.corpus) / TASKS).is_file():
        shutil.copy(Path(config.corpus) / TASKS, output / "corpus")

    console.print(f"[bold]backbone[/bold]: all weights of a new T5 on {len(splits.general)} pairs, scenario not given")
    tokenizer, model = _new_backbone(config, splits.general + splits.tuning)
    pairs = splits.general + with_other_values(splits.general, config.copies, config.seed)
    if config.copying_steps:
        turns = turns_to_repeat(pairs, config.seed)
        console.print(f"[bold]copying[/bold]: it repeats {len(turns)} turns of their dialogues first")
        short = replace(config, backbone_steps=config.copying_steps)
        _train(short, model, tokenizer, turns, output / "copying", {})
    backbone = _train(config, model, tokenizer, pairs, output / "backbone", {})
    freeze(model)
    systems = {name: _System(texts) for name, texts in baseline_texts(splits.test, splits.known).items()}
    systems["frozen backbone"] = _System(_generate(config, model, tokenizer, splits.test))
    for method in config.methods:
        set_seed(config.seed)
        attach(model, method, scenarios=scenarios, **config.options.get(method, {}))
        count = count_parameters(model)
        console.print(
            f"[bold]{method}[/bold]: {count.trained:,} parameters ({100 * count.share:.1f} % of the backbone) on "
            f"{len(splits.tuning)} other pairs"
        )
        settings = {"backbone": str((output / "backbone" / "backbone").resolve()), "method": method}
        result = _train(config, model, tokenizer, splits.tuning, output / method, settings)
        systems[method] = _System(_generate(config, model, tokenizer, splits.test), count.trained, result)
        detach(model)

    table = _table(scorer, splits.test, systems)
    _write_results(output, splits.test, systems, backbone, table)
    show(table, console)
    console.print(_explanation(config, output, count_parameters(model).backbone), soft_wrap=True, highlight=False)
    return output


def _synthetic(config: DemoConfig) -> _Splits:
    sizes = {"general": 200, "train": 200, "valid": 10, "test": 30} if config.short else {}
    corpus = synthetic_corpus(config.seed, **sizes)
    return _Splits(corpus["general"], corpus["train"], corpus["valid"], corpus["test"], corpus["train"])


def _halved(config: DemoConfig) -> _Splits:
    corpus = read_corpus(config.corpus)
    train, test = corpus["train"], corpus["test"]
    random.Random(config.seed).shuffle(train)
    valid = corpus["valid"]
    if config.short:
        train = train[:400]
        valid, test = ([e for e in rows if e.scenario in scenarios_of(train)][:30] for rows in (valid, test))
    half = len(train) // 2
    return _Splits(train[:half], train[half:], valid, test, train)


def _check_methods(config: DemoConfig, scenarios: Sequence[str]) -> None:
    """Raise now what `attach` would otherwise raise after the backbone has been trained."""
    for method in config.methods:
        model = build_backbone(_shape(config, config.vocab_size), device="meta")
        attach(model, method, scenarios=scenarios, **config.options.get(method, {}))


def _new_backbone(config: DemoConfig, examples: Sequence[Example]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = train_tokenizer((text for e in examples for text in (e.dialogue, e.summary)), config.vocab_size)
    model = build_backbone(_shape(config, len(tokenizer)), seed=config.seed)
    return tokenizer, model.requires_grad_(True)


def _shape(config: DemoConfig, vocab_size: int) -> T5Config:
    return T5Config(
        vocab_size=vocab_size,
        d_model=config.d_model,
        d_ff=2 * config.d_model,
        d_kv=_HEAD,
        num_heads=config.d_model // _HEAD,
        num_layers=config.layers,
        num_decoder_layers=config.layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,  # a few passes over the rows: it learns too little, not too much
        pad_token_id=0,  # these three are the ids of train_tokenizer
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def _train(
    config: DemoConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    folder: Path,
    settings: dict,
) -> TrainingResult:
    """Train the plain backbone, or the method that is attached; the folder is a run folder afterwards."""
    tunes = "method" in settings
    steps = config.tuning_steps if tunes else config.backbone_steps
    training = TrainingConfig(
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.tuning_rate if tunes else config.backbone_rate,
        warmup_steps=min(100, steps // 10),
        beta2=0.98,
        temperature=2.0 if tunes else 1.0,
        batching="mixed",
        max_source=config.max_source,
        max_target=config.max_target,
        log_every=max(1, steps // 60),
        seed=config.seed,
    )
    result = train(model, tokenizer, examples, training, output=folder)
    save_run(folder, model, tokenizer, result.history, settings | asdict(training))
    return result


def _generate(config: DemoConfig, model, tokenizer, examples: Sequence[Example]) -> list[str]:
    lengths = {"max_source": config.max_source, "max_new_tokens": config.max_target}
    return generate_summaries(model, tokenizer, examples, progress=True, **lengths)


def _table(scorer: Scorer, test: Sequence[Example], systems: Mapping[str, _System]) -> Table:
    references = [e.summary for e in test]
    tuned = {name: system for name, system in systems.items() if system.result is not None}
    return score_table(
        f"{scorer} on {len(test)} test rows",
        {name: scorer(test, system.summaries) for name, system in systems.items()},
        {
            "numbers kept, %": {n: f"{100 * number_recall(references, s.summaries):.1f}" for n, s in systems.items()},
            "trained parameters": {name: f"{system.trained:,}" for name, system in tuned.items()},
            "seconds a step": {name: f"{system.result.seconds_per_step:.3f}" for name, system in tuned.items()},
        },
    )


def _write_results(
    output: Path, test: Sequence[Example], systems: Mapping[str, _System], backbone: TrainingResult, table: Table
) -> None:
    (output / "results.md").write_text(to_markdown(table), encoding="utf-8")
    write_predictions(output, test, {name: system.summaries for name, system in systems.items()})
    tuned = {name: system.result.losses for name, system in systems.items() if system.result is not None}
    panels = {"training the backbone": {"all weights": backbone.losses}, "tuning, backbone frozen": tuned}
    plot_losses(output / "loss.png", panels)


def _explanation(config: DemoConfig, output: Path, backbone: int) -> str:
    if config.corpus is None:
        task = (
            "The corpus is synthetic. The backbone has seen five summary styles mixed at random; in the test rows each "
            "scenario has one of them. What tuning gains over the frozen backbone is mostly the right style; it says "
            "nothing about how the methods compare on real dialogues."
        )
    else:
        task = (
            f"The corpus is {config.corpus}. A backbone this small, trained for minutes, is no pretrained model: read "
            "the numbers against the floors beside them and against nothing else."
        )
    short = "This was the short form: too few steps for any number to mean something.\n" if config.short else ""
    return (
        f"{short}{task}\n"
        "Floors: the user's first turn as it stands; a training reference of the same scenario, drawn at random; the "
        'reference of the most similar training dialogue. The average is over scenarios. "numbers kept": numbers of '
        "the reference that the summary has, too.\n"
        f"Written to {output}: results.md (this table), predictions.jsonl, loss.png, and run folders for `mop-t5 "
        f"evaluate` and `mop-t5 generate`: backbone ({backbone:,} parameters), {', '.join(config.methods)}.\n"
        f"More on the same pairs: mop-t5 train --backbone {output}/backbone/backbone --corpus {output}/corpus"
    )
