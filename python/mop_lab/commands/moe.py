"""mop-t5 moe compare | adapt | routes | disable: the experiments on task-level mixtures of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mop_t5.data import of_scenarios, read_split, read_tasks
from mop_t5.evaluation import AVERAGE, Rouge, Scorer, Table, generate_summaries, present, show
from mop_t5.evaluation.generation import lengths_of
from mop_t5.evaluation.lost_characters import warn_of_lost_characters
from mop_t5.files import check_writable
from mop_t5.operations.run_folder import load_run
from mop_t5.plots.figures import say_written
from mop_t5.plots.heat_map import heat_map
from mop_t5.plots.points import plot_points
from mop_t5.training import TrainingConfig

from mop_lab.suites.rows import Rows
from mop_lab.suites.suite import SuiteConfig
from mop_lab.task_moe.moe_adaptation import Adaptation, Adaptations
from mop_lab.task_moe.moe_comparison import TABLES, Comparison, MoEGrid
from mop_lab.task_moe.moe_disabling import disabling_table, strongest, without
from mop_lab.task_moe.moe_routes import (
    correlation_table,
    correlations,
    experts_of,
    method_of,
    read_features,
    route_history,
    route_matrix,
)

# the rates of all rows are set together, and what they are is the experiment's
OfRows = Annotated[SuiteConfig, "systems", "learning_rates", "group_rates"]
OfTasks = Annotated[SuiteConfig, "systems", "learning_rates"]
SharedByRows = Annotated[TrainingConfig, "learning_rate", "group_rates", "seed", "batching"]
SharedByTasks = Annotated[
    TrainingConfig, "learning_rate", "group_rates", "seed", "batch_size", "steps", "evaluate_every", "warmup_steps"
]


def moe_compare(
    training: SharedByRows, suite: OfRows, grid: MoEGrid, tables: list[str] | None = None, dry_run: bool = False
) -> None:
    """Train and score mixtures of experts in all combinations of what may matter, beside baselines.

    Table "training": selection x batching x speeds x stages. Table "routers": router x task vectors x whether these are
    trained. Writes OUTPUT/moe-TABLE.md and .csv, the same with "-factors" (means over all rows that share a value) and
    with "-tasks" (the score of each task). The same command goes on where it was interrupted.

      mop-t5 moe compare --corpus DIR --backbone DIR --output runs/moe --dry_run
      mop-t5 moe compare --corpus DIR --backbone DIR --output runs/moe --tables '[training]' \\
          --steps 30000 --evaluate_every 750 --warmup_steps 1800 --batch_size 16 --accumulation 2 --num_beams 4 \\
          --label_smoothing 0.1 --loss sum --max_grad_norm 0.1 --max_target 64
      mop-t5 moe compare --corpus DIR --backbone DIR --output runs/moe --tables '[routers]' \\
          --representations '{text: text.safetensors, fisher: fisher.safetensors}'

    Args:
        tables: "training", "routers"; both if not given.
        dry_run: only print what would be done.
    """
    comparison = Comparison(suite, training, grid, list(TABLES) if tables is None else tables)
    rows = Rows(comparison.rows())
    show(rows.overview())
    if dry_run:
        return
    rows.run()
    scores, what = rows.scores(), _what(suite)
    for name in comparison.cells:
        for part, table in comparison.tables(name, what, scores).items():
            present([table], f"moe-{name}{part}", suite.output)


def moe_adapt(
    training: SharedByTasks,
    suite: OfTasks,
    adaptation: Adaptation,
    steps: int = 1000,
    evaluate_every: int = 100,
    warmup_steps: int = 100,
    dry_run: bool = False,
) -> None:
    """Use a mixture of experts on tasks that it was not trained on: as it is, and tuned on a few of their rows.

    Each task by itself, with learned, average or random routes, beside the plain backbone ("vanilla"). Every system is
    tuned at every rate and batch size; the best validation is scored. The gain is the mean over tasks of
    (score - vanilla) / vanilla. Writes OUTPUT/adaptation.md and .csv; resumed by the same command.

      mop-t5 moe adapt --corpus UNSEEN --backbone DIR --experts runs/moe/adapter --task_vectors text.safetensors \\
          --vanilla runs/vanilla/backbone --shots 16 --seeds '[0, 1, 2]' --output runs/unseen

    Args:
        steps: of each training.
        evaluate_every: validate every so many steps; the best is kept.
        warmup_steps: steps over which the rate rises from zero.
        dry_run: only print what would be done.
    """
    check_writable(suite.output)
    schedule = {"steps": steps, "evaluate_every": evaluate_every, "warmup_steps": warmup_steps}
    fields = {name: getattr(training, name) for name in TrainingConfig.__dataclass_fields__}
    adaptations = Adaptations(suite, TrainingConfig(**fields | schedule), adaptation)
    show(adaptations.overview())
    if dry_run:
        return
    scores, chosen = adaptations.tables(_what(suite), adaptations.run())
    present([scores], "adaptation", suite.output)
    present([chosen], "adaptation-chosen", suite.output)


def moe_routes(
    run: str,
    output: str | None = None,
    features: str | None = None,
    level: float = 0.01,
    temperature: float | None = None,
    backbone: str | None = None,
) -> None:
    """Show which experts each task takes, how that came to be, and which features of tasks it goes with.

    Writes routes.png and .svg (a heat map), routes.md and .csv, with features correlations.md and .csv, and
    entropy.png and .svg where training has logged routes.

      mop-t5 moe routes --run runs/moe
      mop-t5 moe routes --run runs/moe --features features.yaml --output routes

    Args:
        run: folder that `mop-t5 train` wrote with the method task_moe.
        output: folder for what is written; RUN/routes if not given.
        features: YAML file {task: {feature: 0 or 1}}, for Pearson's correlation of each feature with the weight of
            each expert over the tasks.
        level: correlations whose p is below are listed.
        temperature: of the routes; that at the end of training if not given.
        backbone: folder of the backbone, if it has moved since the run.
    """
    model, _, _ = load_run(run, backbone)
    method, folder = method_of(model), Path(output or Path(run) / "routes")
    names, matrix = experts_of(method), route_matrix(method, temperature)
    tasks, shown = list(method.scenarios), float(method.temperature) if temperature is None else temperature
    title = f"Weights of the experts, temperature {shown:g}"
    rows = [[task, *weights] for task, weights in zip(tasks, matrix.tolist())]
    folder.mkdir(parents=True, exist_ok=True)
    present([Table(title, ["task", *names.values()], rows, dict.fromkeys(names.values(), ".3f"))], "routes", folder)
    # a weight of 1e-30 is a 0 to look at
    say_written(heat_map(folder / "routes", tasks, list(names.values()), matrix.round(decimals=3).tolist(), title))
    if features is not None:
        found = correlations(matrix, list(names), read_features(features, tasks))
        present([correlation_table(found, names, len(tasks), level)], "correlations", folder)
    history = route_history(run)
    if history:
        curves = {"at the temperature of the step": "entropy", "at temperature 1": "entropy_at_1"}
        series = {name: [(line["step"], line[key]) for line in history if key in line] for name, key in curves.items()}
        series = {name: points for name, points in series.items() if points}
        labels = {"x_label": "step", "y_label": "nats"}
        say_written(plot_points(folder / "entropy", series, "Mean entropy of the routes", **labels))


def moe_disable(
    run: str,
    features: str,
    output: str | None = None,
    only: list[str] | None = None,
    top: int = 3,
    draws: int = 5,
    corpus: str | None = None,
    split: str = "test",
    implementation: str = "rouge_score",
    unit: str = "char",
    normalise: str = "none",
    num_beams: int = 1,
    batch_size: int = 32,
    backbone: str | None = None,
    seed: int = 0,
) -> None:
    """Take the experts out that go with a feature of tasks, and compare the loss with that of random ones.

    Writes disabling.md and .csv. A feature whose experts matter for it costs more on the tasks that have it than on the
    others, and more than random experts do.

      mop-t5 moe disable --run runs/moe --features features.yaml
      mop-t5 moe disable --run runs/moe --features features.yaml --only '[extractive]' --top 5 --draws 10

    Args:
        run: folder that `mop-t5 train` wrote with the method task_moe.
        features: YAML file {task: {feature: 0 or 1}}.
        output: folder for what is written; RUN/routes if not given.
        only: these features; all if not given.
        top: how many experts are taken out: those whose weights rise most with the feature.
        draws: how many sets of random experts are taken out.
        corpus: corpus folder, if not the one of the run.
        split: "test" or "valid".
        implementation: package that counts ROUGE, "rouge_score" or "rouge".
        unit: what ROUGE counts, "char", "jieba" or "jieba_hmm".
        normalise: form in which both sides are compared, "none" or "nfkc" (full-width punctuation and digits equal the
            others).
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues generated from at once.
        backbone: folder of the backbone, if it has moved since the run.
        seed: of the random experts.
    """
    for name, value in (("top", top), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    check_writable(output or Path(run) / "routes")
    model, tokenizer, settings = load_run(run, backbone, on_accelerator=True)
    method, data = method_of(model), corpus or settings["corpus"]
    names, tasks, matrix = experts_of(method), list(method.scenarios), route_matrix(method)
    having = read_features(features, tasks)
    unknown = sorted(set(only or ()) - set(having))
    if unknown:
        raise ValueError(f"only names {', '.join(unknown)}; {features} has {', '.join(having)}.")
    examples = of_scenarios(read_split(data, split), tasks)
    scorer = Scorer(Rouge(implementation, unit, normalise), read_tasks(data))
    warn_of_lost_characters(tokenizer, examples, scorer, split)
    generation = {"batch_size": batch_size, "num_beams": num_beams, **lengths_of(settings)}

    def score() -> dict[str, float]:
        scores = scorer(examples, generate_summaries(model, tokenizer, examples, **generation))
        return {task: one.mean for task, one in scores.items() if task != AVERAGE}

    found = correlations(matrix, list(names), having)
    chosen = {name: strongest(found, name, top, method.config.experts) for name in only or having}
    whole, disabled = score(), {}
    for name, experts in chosen.items():
        print(f"{name}: {len(experts)} experts, then {draws} random sets", flush=True)
        disabled[name] = ([names[expert] for expert in experts], *without(method, experts, score, draws, seed))
    what = f"{scorer} on {len(examples)} {split} rows, {num_beams} beam(s)"
    present([disabling_table(what, having, tasks, whole, disabled)], "disabling", output or Path(run) / "routes")


def _what(suite: SuiteConfig) -> str:
    scorer = Scorer(Rouge(suite.implementation, suite.unit, suite.normalise), read_tasks(suite.corpus))
    rows = of_scenarios(read_split(suite.corpus, suite.split), suite.scenarios)
    return f"{scorer}, their mean, on {len(rows)} {suite.split} rows, {suite.num_beams} beam(s)"
