"""Run the whole of mop_t5 in a few minutes on a CPU, without pretrained weights: `mop-t5 demo`.

A small T5 is trained on half of the training pairs, with the scenario not given, and frozen. Each method then tunes it
on the other half with equal steps. All systems are scored on the test split, beside the frozen backbone and the
baselines.
"""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mop_t5.backbone.build import build_backbone
from mop_t5.backbone.load import freeze
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import TASKS, Example, read_corpus, read_tasks, scenarios_of, synthetic_corpus, write_examples
from mop_t5.evaluation import Rouge, Scorer, baseline_texts, generate_summaries, number_recall, write_predictions
from mop_t5.evaluation.tables import Table, score_table, show, to_markdown
from mop_t5.operations.attach import attach, count_parameters, detach
from mop_t5.operations.run_folder import describe_output, prepare_output, save_run, write_settings
from mop_t5.plots.charts import plot_losses
from mop_t5.training import TrainingConfig, TrainingResult, train
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from mop_lab.demo.config import DemoConfig
from mop_lab.demo.copying import turns_to_repeat, with_other_values

# the rows: "general", of the backbone; "train", which the methods are tuned on; "valid"; and "test"
_Corpus = dict[str, list[Example]]


def run_demo(config: DemoConfig, rouge: Rouge) -> None:
    """Run the demo, and print its stages and its table.

    Args:
        config: The settings.
        rouge: Scores the tasks without metrics of their own.

    Raises:
        FileExistsError: The output folder has content.
        FileNotFoundError, ValueError: The corpus cannot be read, or a setting is wrong.
    """
    console = Console()
    scorer = Scorer(rouge, read_tasks(config.corpus) if config.corpus else None)
    config = config.shortened()
    corpus = _synthetic(config) if config.corpus is None else _halved(config, config.corpus)
    for method in config.methods:  # a wrong method or option must raise before the backbone is trained
        shape = build_backbone(config.backbone(config.vocab_size), device="meta")
        attach(shape, method, scenarios=_scenarios(corpus), **config.options.get(method, {}))
    if config.dry_run:
        for line in (_plan(config, corpus), describe_output(config.output, overwrite=config.overwrite)):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        return

    output = prepare_output(config.output, overwrite=config.overwrite)
    write_settings(output, asdict(config) | asdict(rouge))
    for name, examples in corpus.items():  # a corpus to tune on, and beside it the rows that the backbone has seen
        write_examples(output / "corpus" / f"{name}.jsonl", examples)
    if config.corpus is not None and (Path(config.corpus) / TASKS).is_file():
        shutil.copy(Path(config.corpus) / TASKS, output / "corpus")

    console.print(
        f"[bold]backbone[/bold]: all weights of a new T5 on {len(corpus['general'])} pairs, scenario not given"
    )
    stages = _Stages(config, corpus, output)
    backbone = stages.train_backbone(console)
    known = corpus["train"] if config.corpus is None else corpus["general"] + corpus["train"]
    texts = baseline_texts(corpus["test"], known) | {"frozen backbone": stages.summaries()}
    tuned: dict[str, _Tuned] = {}
    for method in config.methods:
        tuned[method] = stages.tune(method, console)
        texts[method] = tuned[method].summaries

    table = _table(scorer, corpus["test"], texts, tuned)
    (output / "results.md").write_text(to_markdown(table), encoding="utf-8")
    write_predictions(output, corpus["test"], texts)
    losses = {method: one.result.losses for method, one in tuned.items()}
    panels = {"training the backbone": {"all weights": backbone.losses}, "tuning, backbone frozen": losses}
    plot_losses(output / "loss.png", panels)
    show(table, console)
    console.print(_explanation(config, output, stages.model), soft_wrap=True, highlight=False)


def _synthetic(config: DemoConfig) -> _Corpus:
    sizes = {"general": 200, "train": 200, "valid": 10, "test": 30} if config.short else {}
    return synthetic_corpus(config.seed, **sizes)


def _halved(config: DemoConfig, folder: str) -> _Corpus:
    train, valid, test = read_corpus(folder).values()
    random.Random(config.seed).shuffle(train)
    if config.short:
        train = train[:400]
        valid, test = ([e for e in rows if e.scenario in scenarios_of(train)][:30] for rows in (valid, test))
    half = len(train) // 2
    return {"general": train[:half], "train": train[half:], "valid": valid, "test": test}


def _scenarios(corpus: _Corpus) -> list[str]:
    """Return the scenarios of the rows that are trained on."""
    return scenarios_of(corpus["general"] + corpus["train"])


class _Tuned(NamedTuple):
    summaries: list[str]
    trained: int  # parameters
    result: TrainingResult


class _Stages:
    """The model of the demo, and the stages that change it."""

    def __init__(self, config: DemoConfig, corpus: _Corpus, output: Path):
        self._config, self._corpus, self._output = config, corpus, output
        texts = (text for e in corpus["general"] + corpus["train"] for text in (e.dialogue, e.summary))
        self._tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, config.vocab_size)
        self.model: PreTrainedModel = build_backbone(config.backbone(len(self._tokenizer)), seed=config.seed)

    def train_backbone(self, console: Console) -> TrainingResult:
        """Train all weights of the backbone, and freeze them."""
        config, general = self._config, self._corpus["general"]
        self.model.requires_grad_(True)
        pairs = general + with_other_values(general, config.copies, config.seed)
        if config.copying_steps:
            turns = turns_to_repeat(pairs, config.seed)
            console.print(f"[bold]copying[/bold]: it repeats {len(turns)} turns of their dialogues first")
            self._run("copying", turns, config.training(config.copying_steps, tunes=False))
        result = self._run("backbone", pairs, config.training(config.backbone_steps, tunes=False))
        freeze(self.model)
        return result

    def tune(self, method: str, console: Console) -> _Tuned:
        """Tune the frozen backbone by a method, generate the summaries, and detach the method."""
        config, rows = self._config, self._corpus["train"]
        set_seed(config.seed)
        attach(self.model, method, scenarios=_scenarios(self._corpus), **config.options.get(method, {}))
        count = count_parameters(self.model)
        console.print(
            f"[bold]{method}[/bold]: {count.trained:,} parameters ({100 * count.share:.1f} % of the backbone) on "
            f"{len(rows)} other pairs"
        )
        training, backbone = config.training(config.tuning_steps, tunes=True), self._output / "backbone" / "backbone"
        result = self._run(method, rows, training, backbone=str(backbone.resolve()), method=method)
        tuned = _Tuned(self.summaries(), count.trained, result)
        detach(self.model)
        return tuned

    def summaries(self) -> list[str]:
        """Return the model's summaries of the test rows."""
        lengths: dict[str, Any] = {"max_source": self._config.max_source, "max_new_tokens": self._config.max_target}
        return generate_summaries(self.model, self._tokenizer, self._corpus["test"], progress=True, **lengths)

    def _run(self, name: str, rows: Sequence[Example], training: TrainingConfig, **settings: str) -> TrainingResult:
        """Train the plain backbone or the attached method, and write the run folder."""
        folder = self._output / name
        result = train(self.model, self._tokenizer, rows, training, output=folder)
        save_run(folder, self.model, self._tokenizer, result.history, settings | asdict(training))
        return result


def _plan(config: DemoConfig, corpus: _Corpus) -> str:
    copying = f"{config.copying_steps} steps of copying, then " if config.copying_steps else ""
    return (
        f"Would train a new T5 on {copying}{len(corpus['general'])} pairs for {config.backbone_steps} steps, then "
        f"{', '.join(config.methods)} on {len(corpus['train'])} others for {config.tuning_steps} steps each, "
        f"and score {len(corpus['test'])} rows."
    )


def _table(
    scorer: Scorer, test: Sequence[Example], texts: Mapping[str, Sequence[str]], tuned: Mapping[str, _Tuned]
) -> Table:
    references = [e.summary for e in test]
    return score_table(
        f"{scorer} on {len(test)} test rows",
        {name: scorer(test, given) for name, given in texts.items()},
        {
            "numbers kept, %": {n: f"{100 * number_recall(references, given):.1f}" for n, given in texts.items()},
            "trained parameters": {method: f"{one.trained:,}" for method, one in tuned.items()},
            "seconds per step": {method: f"{one.result.seconds_per_step:.3f}" for method, one in tuned.items()},
        },
    )


def _explanation(config: DemoConfig, output: Path, model: PreTrainedModel) -> str:
    if config.corpus is None:
        task = (
            "The corpus is synthetic. The backbone has seen five summary styles mixed at random. In the test rows each "
            "scenario has one of these styles. What tuning gains over the frozen backbone is mostly the right style. "
            "The gain does not show how the methods compare on real dialogues."
        )
    else:
        task = (
            f"The corpus is {config.corpus}. A backbone this small, trained for minutes, is no pretrained model: "
            "compare the numbers with the baselines beside them and with nothing else."
        )
    short = "This was the short form: too few steps for any number to mean something.\n" if config.short else ""
    return (
        f"{short}{task}\n"
        "Baselines: the user's first turn as it stands; a training reference of the same scenario, drawn at random; "
        'the reference of the most similar training dialogue. The average is over scenarios. "numbers kept": numbers '
        "of the reference that the summary has, too.\n"
        f"Written to {output}: results.md (this table), predictions.jsonl, loss.png, and run folders for `mop-t5 "
        f"evaluate` and `mop-t5 generate`: backbone ({count_parameters(model).backbone:,} parameters), "
        f"{', '.join(config.methods)}.\n"
        f"More on the same pairs: mop-t5 train --backbone {output}/backbone/backbone --corpus {output}/corpus"
    )
