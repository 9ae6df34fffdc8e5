"""mop-t5 attempt sources | prior | ablations | modularity | few-shot | attention | scale | memory: the experiments of
the ATTEMPT paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mop_t5.data import of_scenarios, read_split, scenarios_of
from mop_t5.evaluation import Table, present, show
from mop_t5.evaluation.generation import lengths_of
from mop_t5.files import check_writable
from mop_t5.operations.run_folder import load_run
from mop_t5.plots.figures import say_written
from mop_t5.plots.heat_map import heat_map
from mop_t5.plots.points import plot_points

from mop_lab.analysis import share
from mop_lab.analysis.comparability import not_comparable
from mop_lab.attempt import training_memory
from mop_lab.attempt.attention_matrix import attention_matrix, attention_table
from mop_lab.attempt.few_shot import Draws, few_shot_curves, few_shot_results, few_shot_suites, few_shot_table
from mop_lab.attempt.source_prompts import GENERAL, by_number_of_sources, fill_library, prior_runs, source_systems
from mop_lab.commands.table import Shared
from mop_lab.finished_runs import finished_systems
from mop_lab.suites.score_rows import average_of, score_rows
from mop_lab.suites.starting_points import StartingPoints
from mop_lab.suites.suite import Run, Suite, SuiteConfig
from mop_lab.suites.systems import all_systems, choose

# what is only trained
Trained = Annotated[SuiteConfig, "systems", "seeds", "split", "num_beams", "eval_batch_size"]


def attempt_sources(
    training: Shared, suite: Trained, library: str, prompt_length: int = 100, dry_run: bool = False
) -> None:
    """Train a source prompt on each task of a corpus, and one on all of them, and put the former into a library.

    The same command goes on where it was interrupted. The prompt for all tasks (SPoT-g) is the adapter of
    OUTPUT/runs/general-prompt/seed-0.

      mop-t5 attempt sources --corpus DIR --backbone DIR --library prompts --output runs/sources --steps 5000
      mop-t5 attempt sources --corpus DIR --backbone DIR --library prompts --output runs/sources \\
          --scenarios '[mnli, qnli, squad]' --learning_rates '{source prompts: 0.1, general prompt: 0.1}'

    Args:
        library: folder of the prompt library; it is made if it is not there.
        prompt_length: rows of every prompt.
        dry_run: only print what would be done.
    """
    check_writable(library)  # not after all the training
    systems = source_systems(prompt_length)
    made = Suite(suite, training, list(systems), systems)
    runs = made.plan()
    if _finished(made, runs, dry_run):
        names = fill_library(library, runs)
        print(f"Written to {library}: {', '.join(names)}. `mop-t5 prompts list --library {library}`")
        general = next((run.folder / "adapter" for run in runs if run.system.label == GENERAL), None)
        if general is not None:
            print(f"One prompt for all of them: {general}")


def attempt_prior(
    training: Shared,
    suite: Trained,
    starts: Annotated[StartingPoints, "general_prompt", "prior", "first_steps"],
    groups: dict[str, list[str]] | None = None,
    dry_run: bool = False,
) -> None:
    """Train ATTEMPT's attention on groups of source tasks: the prior that new tasks start from.

    In a group each task has a new target prompt, and all share the attention. That of a group is the adapter of
    OUTPUT/runs/prior/seed-0/GROUP. The same command goes on where it was interrupted.

      mop-t5 attempt prior --corpus DIR --backbone DIR --library prompts --output runs/prior --steps 5000
      mop-t5 attempt prior --corpus DIR --backbone DIR --library prompts --output runs/prior \\
          --groups '{glue: [mnli, sst2, qqp, qnli], qa: [squad, record]}'

    Args:
        groups: the tasks of each group, by its name; one group, "all", of the corpus's tasks if not given.
        dry_run: only print what would be done.
    """
    everything = suite.scenarios or scenarios_of(read_split(suite.corpus, "train"))
    made, runs = prior_runs(suite, training, starts, {"all": everything} if groups is None else groups)
    if _finished(made, runs, dry_run):
        for run in runs:
            print(f"Prior of {', '.join(run.scenarios)}: --prior {run.folder / 'adapter'}")


def attempt_ablations(training: Shared, suite: SuiteConfig, starts: StartingPoints, dry_run: bool = False) -> None:
    """Train and score ATTEMPT, what is left of it without its parts, and what it is compared with, on the same tasks.

    Rows if --systems names no others: the frozen backbone, PT (a prompt of its own for each task), SPoT-t, SPoT-g,
    ATTEMPT with other attentions, without its target prompt, with one or with untrained sources, without and with a
    frozen prior. Writes OUTPUT/ablations.md and .csv; resumed by the same command.

      mop-t5 attempt ablations --corpus DIR --backbone DIR --library prompts --output runs/attempt --dry_run
      mop-t5 attempt ablations --corpus DIR --backbone DIR --library prompts --output runs/attempt \\
          --prior runs/prior/runs/prior/seed-0/all/adapter --seeds '[0, 1, 2]' --group_rates '{attention: 0.333}'

    Args:
        dry_run: only print what would be done.
    """
    known = all_systems(starts)
    made = Suite(suite, training, [label for label, system in known.items() if system.fixed], known)
    runs = made.plan()
    if _finished(made, runs, dry_run):
        present([_scores(made, made.results(runs), "ATTEMPT and its ablations")], "ablations", suite.output)


def attempt_modularity(
    training: Shared,
    suite: Annotated[SuiteConfig, "systems"],
    starts: Annotated[StartingPoints, "general_prompt", "first_steps"],
    dry_run: bool = False,
) -> None:
    """Train and score ATTEMPT with one source prompt, with two, and so on, in the order of --source_prompts.

    Writes OUTPUT/modularity.md, .csv, .png and .svg; resumed by the same command.

      mop-t5 attempt modularity --corpus DIR --backbone DIR --library prompts --output runs/attempt \\
          --source_prompts '[mnli, qqp, squad]'

    Args:
        dry_run: only print what would be done.
    """
    known = by_number_of_sources(starts)
    made = Suite(suite, training, list(known), known)
    runs = made.plan()
    if _finished(made, runs, dry_run):
        results = made.results(runs)
        present([_scores(made, results, "ATTEMPT with more and more source prompts")], "modularity", suite.output)
        columns = list(next(iter(results.values()))[0])
        lines = {c: [(n, average_of(one, c)) for n, one in enumerate(results.values(), 1)] for c in columns}
        say_written(
            plot_points(
                Path(suite.output) / "modularity",
                lines,
                f"source prompts added one by one, {suite.split}",
                x_label="source prompts",
                y_label="score x 100",
                x_ticks=[(n, name) for n, name in enumerate(results, 1)],
            )
        )


def attempt_few_shot(
    training: Shared,
    suite: Annotated[SuiteConfig, "seeds"],
    draws: Draws,
    starts: StartingPoints,
    dry_run: bool = False,
) -> None:
    """Train systems on a few rows of each task, several times drawn, and compare their means over the draws.

    Every system is trained once a task, on it alone, and on the same rows: those that a draw takes for 4 are among
    those that it takes for 16. What starts from what is said by the rows' names; `docs/attempt.md` has them. Without
    --evaluate_every the last step counts. With it the best validation does, on as many rows of valid as were drawn
    from train, and for every system the same. Writes OUTPUT/few-shot.md, .csv, .png and .svg; resumed by the same
    command. The drawn rows are written to OUTPUT/k-K/draw-D/corpus, by --dry_run too.

      mop-t5 attempt few-shot --corpus DIR --backbone DIR --library prompts --output runs/few \\
          --scenarios '[boolq, cb, scitail]' --systems '[frozen backbone, PT, SPoT-g, ATTEMPT]' \\
          --prior DIR --general_prompt DIR --steps 500
      mop-t5 attempt few-shot --corpus DIR --backbone DIR --library prompts --output runs/few --shots '[8]' \\
          --draws '[0, 1, 2, 3, 4]' --systems '[PT, ATTEMPT, MTL-vanilla, MOP]' --dry_run

    Args:
        dry_run: only print what would be done.
    """
    known = all_systems(starts)
    default = [label for label, system in known.items() if system.fixed]
    suites = few_shot_suites(suite, training, draws, default, known)
    if dry_run:
        for made in suites.values():
            show(made.overview(made.plan()))
        return
    results = few_shot_results(suites)
    made = next(iter(suites.values()))
    title = f"Few-shot, {made.scorer}, mean of a task's metrics x 100 on {suite.split}, {suite.num_beams} beam(s)"
    notes = [*_notes(made), f"{len(draws.draws)} draw(s) of the rows; seeds {', '.join(map(str, draws.draws))}."]
    present([few_shot_table(title, results, notes)], "few-shot", suite.output)
    say_written(
        plot_points(
            Path(suite.output) / "few-shot",
            few_shot_curves(results),
            f"few-shot, average over tasks, mean of {len(draws.draws)} draw(s)",
            x_label="training rows a task",
            y_label="score x 100",
            log_x=True,
            x_ticks=[(shots, str(shots)) for shots in draws.shots],
        )
    )


def attempt_attention(
    run: str, corpus: str | None = None, split: str = "test", backbone: str | None = None, output: str | None = None
) -> None:
    """Show which prompts a trained ATTEMPT attends to: the mean of its weights over the rows of each task.

    Writes attention-SPLIT.md, .csv, .png and .svg.

      mop-t5 attempt attention --run runs/attempt/runs/attempt/seed-0
      mop-t5 attempt attention --run runs/all --split valid --output tables

    Args:
        run: folder that `mop-t5 train` wrote, with the method attempt.
        corpus: corpus folder, if not the one of the run.
        split: "train", "valid" or "test".
        backbone: folder of the backbone, if it has moved since the run.
        output: folder for what is written; the run's if not given.
    """
    model, tokenizer, settings = load_run(run, backbone, on_accelerator=True)
    examples = of_scenarios(read_split(corpus or settings["corpus"], split), settings.get("scenarios"))
    matrix = attention_matrix(model, tokenizer, examples, max_source=lengths_of(settings)["max_source"])
    candidates, folder = model.mop.candidates, Path(output or run)
    title = f"mean attention, {split} rows"
    present([attention_table(f"{run}: {title}", matrix, candidates, examples)], f"attention-{split}", folder)
    labels = {"x_label": "prompt", "y_label": "task"}
    say_written(
        heat_map(folder / f"attention-{split}", list(matrix), candidates, list(matrix.values()), title, **labels)
    )


def attempt_scale(suites: list[str], output: str, split: str = "test") -> None:
    """Set the scores of finished suites against trained parameters and, of several, against the backbones' sizes.

    Writes OUTPUT/scale.md and .csv, and as .png and .svg score-by-trained-N of the N-th suite and, for suites on
    several backbones, score-by-backbone and trained-by-backbone.

      mop-t5 attempt scale --suites '[runs/attempt]' --output tables
      mop-t5 attempt scale --suites '[runs/t5-small, runs/t5-base, runs/t5-large]' --output tables

    Args:
        suites: output folders of `mop-t5 table 2`, `table 3`, `attempt ablations` or `attempt modularity`.
        output: folder for what is written.
        split: the split that was scored, "test" or "valid".
    """
    by_suite = [share.measured(suite, split) for suite in suites]
    everything, folder = [one for found in by_suite for one in found], Path(output)
    title = f"Scores (mean of a task's metrics x 100, average over tasks) on {split}, and parameters"
    remarks = not_comparable(finished_systems(suites, split))
    present([share.scale_table(title, everything, remarks=remarks)], "scale", folder)
    y_label = "score x 100"
    for number, (suite, found) in enumerate(zip(suites, by_suite), start=1):
        points = share.against_trained(found)
        path, x_label = folder / f"score-by-trained-{number}", "trained parameters"
        say_written(plot_points(path, points, suite, x_label=x_label, y_label=y_label, log_x=True, lines=False))
    if len({one.backbone for one in everything}) > 1:
        scores, trained = share.against_backbone(everything)
        axis = {"x_label": "parameters of the backbone", "log_x": True}
        say_written(plot_points(folder / "score-by-backbone", scores, "scores", y_label=y_label, **axis))
        what = "trained parameters"
        say_written(plot_points(folder / "trained-by-backbone", trained, what, y_label=what, log_y=True, **axis))


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
    """Measure the peak memory of training, of each system on each backbone, in a process of its own.

    Two steps of AdamW on random tokens; known architectures get random weights. On a GPU by PyTorch's own count, on a
    CPU by what the process grows by.

      mop-t5 attempt memory --backbones '[t5-small, t5-base]' --batch_sizes '[8, 2]' --output tables
      mop-t5 attempt memory --backbones '[t5-base, t5-large]' --batch_sizes '[32, 16]' --device cuda \\
          --options.prefix_length 100

    Args:
        backbones: known architectures such as t5-base, or folders.
        batch_sizes: rows of a batch, one for each backbone.
        systems: labels of the systems; all of them if not given.
        options: fields of the methods, such as {"prefix_length": 100}, given to every system whose method has them.
        scenarios: how many scenarios a batch has.
        source: dialogue tokens of a row.
        target: summary tokens of a row.
        device: "cpu" or "cuda".
        bf16: measure under bfloat16 autocast.
        output: folder for memory.md and memory.csv; only printed if not given.
    """
    if not backbones or len(backbones) != len(batch_sizes):
        raise ValueError(f"batch_sizes must be one for each of {len(backbones)} backbones; got {batch_sizes}.")
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


def _finished(suite: Suite, runs: Sequence[Run], dry_run: bool) -> bool:
    """Show what is left to do and, unless only that was asked for, do it."""
    show(suite.overview(runs))
    if not dry_run:
        suite.run(runs)
    return not dry_run


def _scores(suite: Suite, results, what: str) -> Table:
    config = suite.config
    columns = list(next(iter(results.values()))[0])
    rows = [row for label, repetitions in results.items() for row in score_rows([label], repetitions, columns)]
    title = f"{what}, {suite.scorer}, mean of a task's metrics x 100 on {config.split}, {config.num_beams} beam(s)"
    floors = {name: score_rows([name], [scores], columns) for name, scores in suite.floors().items()}
    for name, ((_, _, *cells),) in floors.items():
        rows.append([name, "floor", *cells])
    return Table(title, ["system", "quantity", *columns], rows, dict.fromkeys(columns, ".2f"), _notes(suite), labels=2)


def _notes(suite: Suite) -> list[str]:
    training, rates = suite.training, {system.label: system.learning_rate for system in suite.systems}
    said = ", ".join(f"{label} {rate:g}" for label, rate in rates.items())
    factors = ", ".join(f"{name} x {factor:g}" for name, factor in suite.config.group_rates.items())
    rows = training.batch_size * training.accumulation
    return [f"{training.steps} steps of {rows} rows. Learning rates: {said}{'; ' + factors if factors else ''}."]
