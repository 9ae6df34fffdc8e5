"""Many trials on one corpus: the planner of every experiment of this package.

OUTPUT/runs/SYSTEM/seed-N      a run folder, as `mop-t5 train` and `mop-t5 evaluate` write it. For a system that trains
                               one model per scenario, a folder with one run folder per scenario.
OUTPUT/runs/SYSTEM/system.json the label of the system and the numbers of its parameters
OUTPUT/floors                  the scores of the baselines

Finished trials are not repeated, so the same call resumes an interrupted suite.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mop_t5.evaluation import SCORES, Table, TaskScores, baseline_texts, read_scores, show, write_scores
from mop_t5.files import check_writable, write_json
from mop_t5.operations import contents
from mop_t5.operations.run_folder import prepare_output, write_settings
from mop_t5.training import TrainingConfig

from mop_lab.finished_runs import SYSTEM, FinishedSystem
from mop_lab.suites.score_rows import Repetitions
from mop_lab.suites.starting_points import FirstVersion
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System, choose
from mop_lab.suites.trial import FINISHED, Inputs, Start, Trial, check_scored_as_before, file_name


class Suite:
    """A list of trials, in the order in which they run. A trial stands behind the trial that it starts from."""

    def __init__(self, trials: Sequence[Trial]):
        self.trials = list(trials)

    def plan(self) -> "Suite":
        """Check all trials that do not wait for another trial. Call this before `run`. Nothing is written.

        Returns:
            The suite itself.

        Raises:
            ValueError: A system does not fit its backbone, a run in the output folder was made with another
                configuration, or trained on other rows or another backbone than there are now.
        """
        ready = [trial for trial in self.trials if not trial.waits]
        for trial in ready:
            trial.check()
        given = {name for trial in ready for name in trial.config.group_rates}
        if unused := sorted(given - {name for trial in ready for name in trial.training.group_rates}):
            raise ValueError(f"group_rates names {', '.join(unused)}, which is no parameter group of these systems.")
        for trial in self.trials:
            trial.inputs.release()
        return self

    @property
    def finished(self) -> bool:
        """True if all trials are finished."""
        return all(trial.finished for trial in self.trials)

    def overview(self) -> Table:
        """Return a table with one row per trial: its folder, its parameters, its learning rate, and what is left."""

        def row(trial: Trial) -> list[object]:
            scenarios, rate = ", ".join(trial.config.scenarios or ["all"]), trial.system.learning_rate
            trained = None if trial.waits else trial.size.trained
            return [trial.system.label, scenarios, trial.seed, trained, rate, str(trial.folder), trial.state]

        steps = sorted({trial.schedule.steps for trial in self.trials})
        span = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else steps[0]
        columns = ["system", "scenarios", "seed", "trained", "learning rate", "folder", "to do"]
        title = f"{len(self.trials)} runs of {span} steps"
        return Table(title, columns, list(map(row, self.trials)), {"trained": ",d"})

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Do what is left to do for all trials.

        Args:
            after: Called each time a trial finishes.

        Raises:
            KeyboardInterrupt: Ctrl-C, with a sentence on what was kept.
        """
        waiting = [trial for trial in self.trials if trial.waits]
        for number, trial in enumerate(self.trials, start=1):
            if trial in waiting:  # its starting point is finished now
                trial.check()
                trial.inputs.release()
            self._describe(trial)
            state = trial.state
            print(f"[{number}/{len(self.trials)}] {trial}: {state}", flush=True)
            try:
                trial.run()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted in run {number} of {len(self.trials)}, {trial}. What is finished is kept, and the "
                    f"same command goes on; with this run: {trial.state}."
                ) from None
            if state != FINISHED:
                after()

    def systems(self) -> dict[str, FinishedSystem]:
        """Return the systems with a finished and scored trial, by their labels. They have the finished trials only."""
        found: dict[str, FinishedSystem] = {}
        for trial in self.trials:
            if trial.system.scored and trial.finished:
                label, (trained, backbone, _) = trial.system.label, self._parameters(trial)
                new = FinishedSystem(label, trial.system.method, trained, backbone, trial.config.output, {})
                found.setdefault(label, new).seeds.setdefault(trial.seed, []).append(trial.result)
        return found

    def results(self) -> dict[str, Repetitions]:
        """Return the scores of the finished trials: label -> one result per seed: scenario -> scores, average last."""
        return {label: list(system.scores.values()) for label, system in self.systems().items()}

    def how_trained(self) -> tuple[str, str]:
        """Return the part of a note that gives the steps and their rows, and the part with the learning rates."""
        schedule = self.trials[-1].schedule
        rates = {trial.system.label: trial.system.learning_rate for trial in self.trials if trial.system.scored}
        steps = f"{schedule.steps} steps of {schedule.step_size}"
        return steps, f"Learning rates: {', '.join(f'{label} {rate:g}' for label, rate in rates.items())}"

    def _parameters(self, trial: Trial) -> tuple[int, int, int]:
        """Return the trained parameters of all models of a system, the backbone's, and the number of models."""
        key = trial.system.label, trial.seed
        counts = [one.size for one in self.trials if (one.system.label, one.seed) == key]
        return sum(count.trained for count in counts), counts[0].backbone, len(counts)

    def _describe(self, trial: Trial) -> None:
        """Write the system.json of a system that is scored."""
        if trial.system.scored:
            trained, backbone, models = self._parameters(trial)
            content = {"label": trial.system.label, "trained": trained, "backbone": backbone, "runs": models}
            trial.system_folder.mkdir(parents=True, exist_ok=True)
            write_json(trial.system_folder / SYSTEM, content)


def trials_of(
    systems: Sequence[System],
    config: SuiteConfig,
    training: TrainingConfig,
    inputs: Inputs | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Trial]:
    """Return the trials of some systems with every seed of the config.

    A system that trains one model per scenario has one trial per scenario. A system that starts from a first version
    of itself has one more trial, for the first version.

    Args:
        systems: The systems, with their options and learning rates. See `choose`.
        config: The corpus, the backbone, the output folder, the seeds, and how to score.
        training: How to train, except for learning_rate, group_rates and seed.
        inputs: Shared with other trials on the same corpora and backbones.
        groups: Train one model per group of scenarios: name of the run folder -> scenarios. The default is one model.

    Raises:
        ValueError: The scored split or the validation split has scenarios that it must not have, or lacks scenarios.
        OSError: The output folder cannot be written into.
    """
    check_writable(config.output)
    inputs = inputs or Inputs()
    tested = _check_scenarios(systems, config, training, inputs)
    alone = {f"{number}-{file_name(scenario)}": [scenario] for number, scenario in enumerate(tested, start=1)}
    trials = []
    for system in systems:
        together = {"": config.scenarios} if groups is None else groups
        for name, scenarios in (alone if system.separate else together).items():
            own = replace(config, scenarios=None if scenarios is None else list(scenarios))
            for seed in config.seeds:
                trial = Trial(system, own, replace(training, seed=seed), inputs, name)
                for field, first in system.options.items():
                    if isinstance(first, FirstVersion):
                        label = f"{system.label}, first version"
                        earlier = replace(system, label=label, options=first.fields, scored=False)
                        schedule = replace(trial.schedule, steps=first.steps, evaluate_every=0, patience=0)
                        trials.append(replace(trial, system=earlier, schedule=schedule))
                        trial = replace(trial, start=Start(field, trials[-1], same_shapes=True))
                trials.append(trial)
    return trials


def suite_of(
    config: SuiteConfig,
    training: TrainingConfig,
    default: Sequence[str],
    known: Mapping[str, System] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Suite:
    """Return the suite of the systems that a config names.

    Args:
        config: See `trials_of`.
        training: See `trials_of`.
        default: Labels of the systems if the config names none.
        known: The systems to choose from. See `choose`.
        groups: See `trials_of`.
    """
    systems = choose(config.systems, default, config.options, config.learning_rates, known)
    return Suite(trials_of(systems, config, training, groups=groups))


def _check_scenarios(
    systems: Sequence[System], config: SuiteConfig, training: TrainingConfig, inputs: Inputs
) -> list[str]:
    """Return the scenarios that are scored. Raise ValueError as `trials_of` does."""
    known = inputs.scenarios(config, "train")
    tested = inputs.scenarios(config, config.split) if any(system.scored for system in systems) else known
    validated = inputs.scenarios(config, "valid") if training.evaluate_every else tested
    for split, names in ((config.split, tested), ("valid", validated)):
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(
                f"the {split} split has scenarios that train lacks: {', '.join(unknown)}. Add training rows for "
                "them or take them out."
            )
    alone = [system.label for system in systems if system.separate]
    missing = sorted(set(tested) - set(validated))
    if alone and missing:
        raise ValueError(
            f"the valid split has no rows of {', '.join(missing)}, which {', '.join(alone)} would be validated on. "
            "Add some, or choose --systems without it."
        )
    return tested


def carry_out(suite: Suite, dry_run: bool, after: Callable[[], None] = lambda: None) -> bool:
    """Show what is left to do and, unless dry_run is set, do it.

    Args:
        suite: The trials.
        dry_run: Only show.
        after: Called each time a trial finishes.

    Returns:
        True if the trials are finished now.
    """
    show(suite.plan().overview())
    if not dry_run:
        suite.run(after)
    return not dry_run


def baseline_scores(config: SuiteConfig) -> dict[str, dict[str, TaskScores]]:
    """Return the scores of the baselines: baseline -> scenario -> scores. They are computed once per corpus."""
    folder, inputs = Path(config.output) / "floors", Inputs()
    settings = config.scoring() | {"scenarios": config.scenarios}
    check_scored_as_before(folder, settings)
    known, rows = (inputs.rows(config, split) for split in ("train", config.split))
    made_of = {"train": contents.of_rows(known), config.split: contents.of_rows(rows)}
    if not (folder / SCORES).is_file() or contents.read_contents(folder) != made_of:
        texts = baseline_texts(rows, known)
        prepare_output(folder, overwrite=True)
        write_settings(folder, settings)
        contents.write_contents(folder, made_of)
        write_scores(folder, {name: config.scorer()(rows, given) for name, given in texts.items()})
    return read_scores(folder)
