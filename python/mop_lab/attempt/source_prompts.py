"""The trials of ATTEMPT: source prompts, the prior of the attention, and ATTEMPT with more and more source prompts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mop_t5.storage import prompt_library

from mop_lab.suites.starting_points import StartingPoints
from mop_lab.suites.systems import System, all_systems, systems_of
from mop_lab.suites.trial import Trial

SOURCES, GENERAL, PRIOR = "source prompts", "general prompt", "prior"
ATTEMPT = "ATTEMPT"  # the row of the whole method


def source_systems(length: int) -> dict[str, System]:
    """Return the systems that train one prompt per task, and one prompt for all tasks.

    Args:
        length: Rows of a prompt. As in the paper, a prompt starts from random frequent words.
    """
    method = prompt_library.METHOD
    options = {"prefix_length": length, "init": "vocabulary"}
    one = System(SOURCES, method, options, True, systems_of(method).learning_rate, scored=False)
    return {SOURCES: one, GENERAL: replace(one, label=GENERAL, separate=False)}


def prior_system(starts: StartingPoints) -> dict[str, System]:
    """Return the system that trains the attention of ATTEMPT on source tasks, by its label."""
    return {PRIOR: replace(all_systems(starts)[ATTEMPT], label=PRIOR, scored=False)}


def by_number_of_sources(starts: StartingPoints) -> dict[str, System]:
    """Return ATTEMPT with the first source prompt, with the first two, and so on."""
    rows = {}
    for count, name in enumerate(starts.prompts, start=1):
        label = f"{count} source{'s' if count > 1 else ''}: {'+ ' if count > 1 else ''}{name}"
        fewer = replace(starts, source_prompts=list(starts.prompts[:count]))
        rows[label] = replace(all_systems(fewer)[ATTEMPT], label=label)
    return rows


def fill_library(library: str | Path, trials: Sequence[Trial]) -> list[str]:
    """Copy the prompts of finished trials into a library.

    A prompt that the library holds already stays.

    Args:
        library: The folder of the library.
        trials: The trials of SOURCES, each on one task.

    Returns:
        The names of the prompts, each the name of its task.

    Raises:
        FileExistsError: The library has another prompt of such a name. See prompt_library.add for other errors.
    """
    added = []
    for trial in trials:
        [name] = trial.config.scenarios or [""]
        known = prompt_library.names(library) if Path(library).is_dir() else ()
        new = prompt_library.read_adapter(trial.adapter).prompt
        if name not in known or not prompt_library.read(library, name).prompt.equal(new):
            prompt_library.add(library, name, trial.adapter)
        added.append(name)
    return added
