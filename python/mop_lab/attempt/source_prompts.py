"""Source prompts, the attention prior, and what they are worth: what is trained before ATTEMPT, and its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mop_t5
from mop_t5.storage import prompt_library
from mop_t5.training import TrainingConfig

from mop_lab.suites.starting_points import StartingPoints
from mop_lab.suites.suite import Run, Suite, SuiteConfig
from mop_lab.suites.systems import System, all_systems, systems_of

SOURCES, GENERAL, PRIOR = "source prompts", "general prompt", "prior"
ATTEMPT = "ATTEMPT"  # the row of the whole method


def source_systems(length: int) -> dict[str, System]:
    """What trains a prompt on each task, and one on all of them; from random frequent words, as the paper's."""
    method = prompt_library.METHOD
    options = {"prefix_length": length, "init": "vocabulary"}
    one = System(SOURCES, method, options, True, systems_of(method).learning_rate, scored=False)
    return {SOURCES: one, GENERAL: replace(one, label=GENERAL, separate=False)}


def fill_library(library: str | Path, runs: Sequence[Run]) -> list[str]:
    """Put the prompts of finished runs of SOURCES into a library, each under the name of its task; one that is there
    already stays. Returns the names. Raises what prompt_library.add does, FileExistsError for another prompt of such a
    name."""
    added = []
    for run in runs:
        if run.system.label != SOURCES:
            continue
        (name,) = run.scenarios
        known = prompt_library.names(library) if Path(library).is_dir() else ()
        new = prompt_library.read_adapter(run.folder / "adapter").prompt
        if name not in known or not prompt_library.read(library, name).prompt.equal(new):
            prompt_library.add(library, name, run.folder / "adapter")
        added.append(name)
    return added


def prior_runs(
    config: SuiteConfig, training: TrainingConfig, starts: StartingPoints, groups: Mapping[str, Sequence[str]]
) -> tuple[Suite, list[Run]]:
    """The runs that train ATTEMPT on groups of source tasks, each task with a new target prompt: name -> tasks."""
    known = {PRIOR: replace(all_systems(starts)[ATTEMPT], label=PRIOR, scored=False)}
    suite = Suite(config, training, [PRIOR], known)
    model = mop_t5.load_backbone(config.backbone)
    return suite, [run for name, tasks in groups.items() for run in suite.runs_of(suite.systems[0], model, tasks, name)]


def by_number_of_sources(starts: StartingPoints) -> dict[str, System]:
    """ATTEMPT with the first source prompt, with the first two, and so on."""
    rows = {}
    for count, name in enumerate(starts.prompts, start=1):
        label = f"{count} source{'s' if count > 1 else ''}: {'+ ' if count > 1 else ''}{name}"
        fewer = replace(starts, source_prompts=list(starts.prompts[:count]))
        rows[label] = replace(all_systems(fewer)[ATTEMPT], label=label)
    return rows
