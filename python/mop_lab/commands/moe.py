"""mop-t5 moe compare | adapt | routes | disable: the experiments on task-level mixtures of experts."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from mop_t5.checks import check_int
from mop_t5.data import of_scenarios, read_split, read_tasks
from mop_t5.evaluation import AVERAGE, Rouge, Scorer, generate_summaries, present, show
from mop_t5.evaluation.generation import lengths_of
from mop_t5.evaluation.scorer import warn_of_lost_characters
from mop_t5.files import check_writable
from mop_t5.operations.run_folder import load_run
from mop_t5.plots.charts import heat_map
from mop_t5.plots.figures import say_written

from mop_lab.commands.table import Shared
from mop_lab.suites.suite import Suite, carry_out
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.task_moe import routes
from mop_lab.task_moe.adaptation import Adaptation, Adaptations
from mop_lab.task_moe.comparison import TABLES, Factors, MixtureComparison
from mop_lab.task_moe.disabling import disabling_table, strongest, without

# the comparison sets the learning rates of all rows
OfTasks = Annotated[SuiteConfig, "systems", "learning_rates"]
OfRows = Annotated[OfTasks, "group_rates"]
SharedByRows = Annotated[Shared, "batching"]
SharedByTasks = Annotated[Shared, "batch_size", "tokens_per_batch", "steps", "evaluate_every", "warmup_steps"]


def moe_compare(
    training: SharedByRows, suite: OfRows, factors: Factors, tables: list[str] | None = None, dry_run: bool = False
) -> None:
    r"""Train and score mixtures of experts with all combinations of some factors, beside baselines.

    Table "training": selection x batching x speeds x stages. Table "routers": router x task vectors x whether the task
    vectors are trained. Writes OUTPUT/moe-TABLE.md and .csv, the same with "-factors" (means over all rows that share a
    value) and with "-tasks" (the score of each task). The same command resumes an interrupted comparison.

      mop-t5 moe compare --corpus DIR --backbone DIR --output runs/moe --dry_run
      mop-t5 moe compare --corpus DIR --backbone DIR --output runs/moe --tables '[training]' \
          --steps 30000 --evaluate_every 750 --warmup_steps 1800 --batch_size 16 --accumulation 2 --num_beams 4 \
          --label_smoothing 0.1 --loss sum --max_grad_norm 0.1 --max_target 64
      mop-t5 moe compare --corpus DIR --backbone DIR --output runs/moe --tables '[routers]' \
          --representations '{text: text.safetensors, fisher: fisher.safetensors}'

    Args:
        training: how to train.
        suite: the corpus, the backbone, and how to score.
        factors: the factors, and their values.
        tables: "training", "routers". The default is both.
        dry_run: only print what would be done.
    """
    comparison = MixtureComparison(suite, training, factors, list(TABLES) if tables is None else tables)
    planned = Suite(comparison.trials())
    if carry_out(planned, dry_run):
        for name in comparison.combinations:
            for part, table in comparison.tables(name, planned.results()).items():
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
    r"""Adapt a mixture of experts to tasks that it was not trained on: zero-shot, and tuned on a few of their rows.

    Each task is learnt by itself, with learned, average or random routes, beside the plain backbone ("vanilla"). Every
    system is tuned at every rate and batch size, and the trial with the best validation is scored. The gain is the mean
    over tasks of (score - vanilla) / vanilla. Writes OUTPUT/adaptation.md and .csv, and adaptation-chosen.md and .csv.
    The same command resumes an interrupted adaptation.

      mop-t5 moe adapt --corpus UNSEEN --backbone DIR --experts runs/moe/adapter --task_vectors text.safetensors \
          --vanilla runs/vanilla/backbone --shots 16 --seeds '[0, 1, 2]' --output runs/unseen

    Args:
        training: how to train.
        suite: the corpus, the backbone, and how to score.
        adaptation: the mixture of experts, and the grid.
        steps: steps of each training.
        evaluate_every: steps between validations. The best is kept.
        warmup_steps: steps over which the rate rises from zero.
        dry_run: only print what would be done.
    """
    check_writable(suite.output)
    training = replace(training, steps=steps, evaluate_every=evaluate_every, warmup_steps=warmup_steps)
    adaptations = Adaptations(suite, training, adaptation)
    show(adaptations.overview())
    if not dry_run:
        for name, table in adaptations.tables(adaptations.run()).items():
            present([table], name, suite.output)


def moe_routes(
    run: str,
    output: str | None = None,
    features: str | None = None,
    level: float = 0.01,
    temperature: float | None = None,
    backbone: str | None = None,
) -> None:
    """Show the experts of each task, the entropy of the routes in training, and their correlations with features.

    Writes routes.png and .svg (a heat map), routes.md and .csv. With features it writes correlations.md and .csv. If
    the training has logged routes, it writes entropy.png and .svg.

      mop-t5 moe routes --run runs/moe
      mop-t5 moe routes --run runs/moe --features features.yaml --output routes

    Args:
        run: folder that `mop-t5 train` wrote with the method task_moe.
        output: folder for the files. The default is RUN/routes.
        features: YAML file {task: {feature: 0 or 1}}, for Pearson's correlation of each feature with the weight of
            each expert over the tasks.
        level: list the correlations whose p is below this number.
        temperature: temperature of the routes. The default is the last temperature of the training.
        backbone: folder of the backbone, if it has moved since the run.
    """
    model, _, _ = load_run(run, backbone)
    method, folder = routes.method_of(model), Path(output or Path(run) / "routes")
    names, matrix, tasks = routes.experts_of(method), routes.route_matrix(method, temperature), list(method.scenarios)
    table = routes.route_table(method, matrix, temperature)
    present([table], "routes", folder)
    rounded = matrix.round(decimals=3).tolist()  # a weight of 1e-30 looks like 0
    say_written(heat_map(folder / "routes", tasks, list(names.values()), rounded, table.title))
    if features is not None:
        found = routes.correlations(matrix, list(names), routes.read_features(features, tasks))
        present([routes.correlation_table(found, names, len(tasks), level)], "correlations", folder)
    if history := routes.route_history(run):
        say_written(routes.plot_entropy(folder / "entropy", history))


def moe_disable(
    run: str,
    features: str,
    rouge: Rouge,
    output: str | None = None,
    only: list[str] | None = None,
    top: int = 3,
    draws: int = 5,
    corpus: str | None = None,
    split: str = "test",
    num_beams: int = 1,
    batch_size: int = 32,
    backbone: str | None = None,
    seed: int = 0,
) -> None:
    """Disable the experts that correlate with a feature of tasks, and compare the loss with that of random experts.

    Writes disabling.md and .csv. If the experts of a feature matter for it, the tasks with the feature lose more than
    the other tasks, and more than without random experts.

      mop-t5 moe disable --run runs/moe --features features.yaml
      mop-t5 moe disable --run runs/moe --features features.yaml --only '[extractive]' --top 5 --draws 10

    Args:
        run: folder that `mop-t5 train` wrote with the method task_moe.
        features: YAML file {task: {feature: 0 or 1}}.
        rouge: how ROUGE is computed.
        output: folder for the files. The default is RUN/routes.
        only: the features. The default is all.
        top: number of experts to disable: those whose weights rise most with the feature.
        draws: number of sets of random experts to disable.
        corpus: corpus folder. The default is the corpus of the run.
        split: "test" or "valid".
        num_beams: beams of the search. 1 is greedy.
        batch_size: dialogues per batch of the generation.
        backbone: folder of the backbone, if it has moved since the run.
        seed: seed of the random experts.
    """
    check_int("top", top, 1)
    check_int("draws", draws, 1)
    folder = Path(output or Path(run) / "routes")
    check_writable(folder)
    model, tokenizer, settings = load_run(run, backbone, on_accelerator=True)
    method, data = routes.method_of(model), corpus or settings["corpus"]
    names, tasks, matrix = routes.experts_of(method), list(method.scenarios), routes.route_matrix(method)
    having = routes.read_features(features, tasks)
    if unknown := sorted(set(only or ()) - set(having)):
        raise ValueError(f"only names {', '.join(unknown)}; {features} has {', '.join(having)}.")
    examples = of_scenarios(read_split(data, split), tasks)
    generation = {"batch_size": batch_size, "num_beams": num_beams, **lengths_of(settings)}
    scorer = Scorer(rouge, read_tasks(data))
    warn_of_lost_characters(tokenizer, examples, scorer, split)

    def score() -> dict[str, float]:
        texts = generate_summaries(model, tokenizer, examples, progress=False, **generation)
        return {task: one.mean for task, one in scorer(examples, texts).items() if task != AVERAGE}

    found = routes.correlations(matrix, list(names), having)
    chosen = {name: strongest(found, name, top, method.config.experts) for name in only or having}
    whole, disabled = score(), {}
    for name, experts in chosen.items():
        print(f"{name}: {len(experts)} experts, then {draws} random sets", flush=True)
        disabled[name] = ([names[expert] for expert in experts], *without(method, experts, score, draws, seed))
    what = f"{scorer} on {len(examples)} {split} rows, {num_beams} beam(s)"
    present([disabling_table(what, having, tasks, whole, disabled)], "disabling", folder)
