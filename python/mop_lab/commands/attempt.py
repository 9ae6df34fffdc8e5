"""mop-t5 attempt sources | prior | ablations | ...: the experiments of the ATTEMPT paper."""

from pathlib import Path
from typing import Annotated, Any

from mop_t5.data import of_scenarios, read_split, scenarios_of
from mop_t5.evaluation import present
from mop_t5.evaluation.generation import lengths_of
from mop_t5.files import check_writable
from mop_t5.operations.run_folder import load_run
from mop_t5.plots.charts import heat_map
from mop_t5.plots.figures import say_written

from mop_lab.attempt import training_memory
from mop_lab.attempt.attention_matrix import attempt_of, attention_matrix, attention_table
from mop_lab.attempt.few_shot import Draws, few_shot_results, few_shot_suites, plot_few_shot
from mop_lab.attempt.results import notes_of, plot_modularity, results_table, task_scores
from mop_lab.attempt.scale import plot_scale
from mop_lab.attempt.source_prompts import by_number_of_sources, fill_library, prior_system, source_systems
from mop_lab.commands.analyse import present_sizes
from mop_lab.commands.table import Shared
from mop_lab.suites.score_rows import scores_table
from mop_lab.suites.sizes import check_backbone
from mop_lab.suites.starting_points import StartingPoints
from mop_lab.suites.suite import carry_out, suite_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System, all_systems, choose

# without the fields that only scored systems need
Trained = Annotated[SuiteConfig, "systems", "seeds", "split", "num_beams", "eval_batch_size"]


def attempt_sources(
    training: Shared, suite: Trained, library: str, prompt_length: int = 100, dry_run: bool = False
) -> None:
    r"""Train a source prompt on each task of a corpus, and one on all tasks, and put the task prompts into a library.

    The same command resumes an interrupted training. The prompt for all tasks (SPoT-g) is the adapter of
    OUTPUT/runs/general-prompt/seed-0.

      mop-t5 attempt sources --corpus DIR --backbone DIR --library prompts --output runs/sources --steps 5000
      mop-t5 attempt sources --corpus DIR --backbone DIR --library prompts --output runs/sources \
          --scenarios '[mnli, qnli, squad]' --learning_rates '{source prompts: 0.1, general prompt: 0.1}'

    Args:
        training: how to train.
        suite: the corpus, the backbone, and the output folder.
        library: folder of the prompt library. It is made if it does not exist.
        prompt_length: rows of every prompt.
        dry_run: only print what would be done.
    """
    check_writable(library)  # before all the training
    systems = source_systems(prompt_length)
    planned = suite_of(suite, training, list(systems), systems)
    if carry_out(planned, dry_run):
        *sources, general = planned.trials
        names = fill_library(library, sources)
        print(f"Written to {library}: {', '.join(names)}. `mop-t5 prompts list --library {library}`")
        print(f"One prompt for all of them: {general.folder / 'adapter'}")


def attempt_prior(
    training: Shared,
    suite: Trained,
    starts: Annotated[StartingPoints, "general_prompt", "prior", "first_steps"],
    groups: dict[str, list[str]] | None = None,
    dry_run: bool = False,
) -> None:
    r"""Train ATTEMPT's attention on groups of source tasks: the prior that new tasks start from.

    Each task of a group has a new target prompt, and all tasks share the attention. The prior of a group is the adapter
    of OUTPUT/runs/prior/seed-0/GROUP. The same command resumes an interrupted training.

      mop-t5 attempt prior --corpus DIR --backbone DIR --library prompts --output runs/prior --steps 5000
      mop-t5 attempt prior --corpus DIR --backbone DIR --library prompts --output runs/prior \
          --groups '{glue: [mnli, sst2, qqp, qnli], qa: [squad, record]}'

    Args:
        training: how to train.
        suite: the corpus, the backbone, and the output folder.
        starts: the source prompts.
        groups: the tasks of each group, by its name. The default is one group, "all", with all tasks of the corpus.
        dry_run: only print what would be done.
    """
    if groups is None:
        groups = {"all": suite.scenarios or scenarios_of(read_split(suite.corpus, "train"))}
    systems = prior_system(starts)
    planned = suite_of(suite, training, list(systems), systems, groups)
    if carry_out(planned, dry_run):
        for trial in planned.trials:
            print(f"Prior of {', '.join(groups[trial.name])}: --prior {trial.folder / 'adapter'}")


def attempt_ablations(training: Shared, suite: SuiteConfig, starts: StartingPoints, dry_run: bool = False) -> None:
    r"""Train and score ATTEMPT, ATTEMPT without some of its parts, and its baselines, on the same tasks.

    Rows if --systems is not given: the frozen backbone, PT (one prompt per task), SPoT-t, SPoT-g, ATTEMPT with other
    attentions, without its target prompt, with one or with untrained sources, without a prior and with a frozen prior.
    Writes OUTPUT/ablations.md and .csv. The same command resumes an interrupted training.

      mop-t5 attempt ablations --corpus DIR --backbone DIR --library prompts --output runs/attempt --dry_run
      mop-t5 attempt ablations --corpus DIR --backbone DIR --library prompts --output runs/attempt \
          --prior runs/prior/runs/prior/seed-0/all/adapter --seeds '[0, 1, 2]' --group_rates '{attention: 0.333}'

    Args:
        training: how to train.
        suite: the systems, and how to score them.
        starts: the source prompts, and other starting points.
        dry_run: only print what would be done.
    """
    known, default = _systems_from(starts)
    planned = suite_of(suite, training, default, known)
    if carry_out(planned, dry_run):
        present([results_table("ATTEMPT and its ablations", suite, planned)], "ablations", suite.output)


def attempt_modularity(
    training: Shared,
    suite: Annotated[SuiteConfig, "systems"],
    starts: Annotated[StartingPoints, "general_prompt", "first_steps"],
    dry_run: bool = False,
) -> None:
    r"""Train and score ATTEMPT with one source prompt, with two, and so on, in the order of --source_prompts.

    Writes OUTPUT/modularity.md, .csv, .png and .svg. The same command resumes an interrupted training.

      mop-t5 attempt modularity --corpus DIR --backbone DIR --library prompts --output runs/attempt \
          --source_prompts '[mnli, qqp, squad]'

    Args:
        training: how to train.
        suite: the corpus, the backbone, and how to score.
        starts: the source prompts, and the prior.
        dry_run: only print what would be done.
    """
    known = by_number_of_sources(starts)
    planned = suite_of(suite, training, list(known), known)
    if carry_out(planned, dry_run):
        table = results_table("ATTEMPT with more and more source prompts", suite, planned)
        present([table], "modularity", suite.output)
        say_written(plot_modularity(Path(suite.output) / "modularity", planned.results(), suite.split))


def attempt_few_shot(
    training: Shared,
    suite: Annotated[SuiteConfig, "seeds"],
    draws: Draws,
    starts: StartingPoints,
    dry_run: bool = False,
) -> None:
    r"""Train systems on a few rows of each task, several times drawn, and compare their means over the draws.

    Every system is trained once per task, on this task alone, and on the same rows. The rows of a draw of 4 are among
    the rows of a draw of 16. `docs/attempt.md` explains the starting point of each row. Without --evaluate_every the
    last step counts. With it the best validation counts, on as many rows of valid as were drawn from train; these rows
    are the same for every system. Writes OUTPUT/few-shot.md, .csv, .png and .svg. The same command resumes an
    interrupted training. The drawn rows are written to OUTPUT/k-K/draw-D/corpus, by --dry_run too.

      mop-t5 attempt few-shot --corpus DIR --backbone DIR --library prompts --output runs/few \
          --scenarios '[boolq, cb, scitail]' --systems '[frozen backbone, PT, SPoT-g, ATTEMPT]' \
          --prior DIR --general_prompt DIR --steps 500
      mop-t5 attempt few-shot --corpus DIR --backbone DIR --library prompts --output runs/few --shots '[8]' \
          --draws '[0, 1, 2, 3, 4]' --systems '[PT, ATTEMPT, MTL-vanilla, MOP]' --dry_run

    Args:
        training: how to train.
        suite: the systems, and how to score them.
        draws: the drawn rows.
        starts: the source prompts, and other starting points.
        dry_run: only print what would be done.
    """
    known, default = _systems_from(starts)
    systems = choose(suite.systems, default, suite.options, suite.learning_rates, known)
    suites = few_shot_suites(suite, training, draws, systems)
    for (shots, seed), planned in suites.items():
        print(f"{shots} rows per task, draw {seed}", flush=True)
        carry_out(planned, dry_run)
    if not dry_run:
        results, title = few_shot_results(suites), f"Few-shot, {task_scores(suite)}"
        seeds = f"{len(draws.draws)} draw(s) of the rows; seeds {', '.join(map(str, draws.draws))}."
        notes = [*notes_of(suite, next(iter(suites.values()))), seeds]
        present([scores_table(title, ["system", "rows"], results.items(), notes)], "few-shot", suite.output)
        say_written(plot_few_shot(Path(suite.output) / "few-shot", results, draws))


def attempt_attention(
    run: str, corpus: str | None = None, split: str = "test", backbone: str | None = None, output: str | None = None
) -> None:
    """Show the prompts that a trained ATTEMPT attends to: the mean of its weights over the rows of each task.

    Writes attention-SPLIT.md, .csv, .png and .svg.

      mop-t5 attempt attention --run runs/attempt/runs/attempt/seed-0
      mop-t5 attempt attention --run runs/all --split valid --output tables

    Args:
        run: folder that `mop-t5 train` wrote, with the method attempt.
        corpus: corpus folder. The default is the corpus of the run.
        split: "train", "valid" or "test".
        backbone: folder of the backbone, if it has moved since the run.
        output: folder for the files. The default is the folder of the run.
    """
    model, tokenizer, settings = load_run(run, backbone, on_accelerator=True)
    examples = of_scenarios(read_split(corpus or settings["corpus"], split), settings.get("scenarios"))
    matrix = attention_matrix(model, tokenizer, examples, max_source=lengths_of(settings)["max_source"])
    candidates, name, folder = attempt_of(model).candidates, f"attention-{split}", Path(output or run)
    title, values = f"mean attention, {split} rows", list(matrix.values())
    present([attention_table(f"{run}: {title}", matrix, candidates, examples)], name, folder)
    say_written(heat_map(folder / name, list(matrix), candidates, values, title, x_label="prompt", y_label="task"))


def attempt_scale(suites: list[str], output: str, split: str = "test") -> None:
    """Set the scores of finished suites against trained parameters and the sizes of several backbones.

    Writes OUTPUT/scale.md and .csv. Writes as .png and .svg score-by-trained-N of the N-th suite and, for suites on
    several backbones, score-by-backbone and trained-by-backbone.

      mop-t5 attempt scale --suites '[runs/attempt]' --output tables
      mop-t5 attempt scale --suites '[runs/t5-small, runs/t5-base, runs/t5-large]' --output tables

    Args:
        suites: output folders of `mop-t5 table 2`, `table 3`, `attempt ablations` or `attempt modularity`.
        output: folder for the files.
        split: the scored split, "test" or "valid".
    """
    title = f"Scores (mean of a task's metrics x 100, average over tasks) on {split}, and parameters"
    for written in plot_scale(Path(output), present_sizes("scale", title, suites, output, split)):
        say_written(written)


def attempt_memory(
    backbones: list[str],
    batch_sizes: list[int],
    systems: list[str] | None = None,
    options: dict[str, Any] | None = None,
    scenarios: int = 1,
    source: int = 256,
    target: int = 16,
    device: str = "cpu",
    bf16: bool = False,
    output: str | None = None,
) -> None:
    r"""Measure the peak memory of training. Each system on each backbone is measured in a process of its own.

    A process takes two steps of AdamW on random tokens. Known architectures get random weights. On a GPU the number is
    PyTorch's own count. On a CPU it is the growth of the process.

      mop-t5 attempt memory --backbones '[t5-small, t5-base]' --batch_sizes '[8, 2]' --output tables
      mop-t5 attempt memory --backbones '[t5-base, t5-large]' --batch_sizes '[32, 16]' --device cuda \
          --options.prefix_length 100

    Args:
        backbones: known architectures such as t5-base, or folders.
        batch_sizes: rows per batch, one number for each backbone.
        systems: labels of the systems. The default is all.
        options: fields of the methods, such as {"prefix_length": 100}, given to every system whose method has them.
        scenarios: scenarios per batch.
        source: dialogue tokens per row.
        target: summary tokens per row.
        device: "cpu" or "cuda".
        bf16: measure under bfloat16 autocast.
        output: folder for memory.md and memory.csv. The default only prints.
    """
    if not backbones or len(backbones) != len(batch_sizes):
        raise ValueError(f"batch_sizes must be one for each of {len(backbones)} backbones; got {batch_sizes}.")
    for backbone in backbones:
        check_backbone(backbone)
    if output is not None:
        check_writable(output)
    cells: dict[str, list[int]] = {}
    steps = [training_memory.Step(size, source, target, device, bf16) for size in batch_sizes]
    for system in choose(systems, list(all_systems()), options):
        for backbone, step in zip(backbones, steps):
            count = 1 if system.separate else scenarios
            peak = training_memory.peak_memory(backbone, system.method, system.options, count, step)
            print(f"{system.label}, {backbone}, batch {step.batch_size}: {peak / 1e9:.3f} GB", flush=True)
            cells.setdefault(system.label, []).append(peak)
    present([training_memory.memory_table(backbones, batch_sizes, cells, steps[0])], "memory", output)


def _systems_from(starts: StartingPoints) -> tuple[dict[str, System], list[str]]:
    """Return all systems by their labels, and the labels of those that start from the source prompts."""
    known = all_systems(starts)
    return known, [label for label, system in known.items() if system.fixed]
