"""Collect the settings of runs: the settings that all runs share, and the settings in which systems differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mop_lab.finished_runs import FinishedRun, FinishedSystem

_SCORING = "evaluation."
_OF_ONE_RUN = {"seed", "seeds", "scenarios", f"{_SCORING}run"}  # other parts of the page show them


def configurations(systems: Sequence[FinishedSystem]) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """Return the settings of systems, as text.

    Returns:
        setting -> the value that all runs have, and system -> setting -> the different values of its runs.

    Raises:
        ValueError: A run.json is damaged.
    """
    of_runs = {s.label: [_settings(run) for run in s.runs] for s in systems}
    every = [settings for runs in of_runs.values() for settings in runs]
    names = dict.fromkeys(name for settings in every for name in settings)
    shared = {n: every[0][n] for n in names if all(n in s and s[n] == every[0].get(n) for s in every)}
    own = {
        label: {n: values for n in names if n not in shared and (values := _values(runs, n))}
        for label, runs in of_runs.items()
    }
    return shared, own


def _settings(run: FinishedRun) -> dict[str, str]:
    settings = {**dict(_flat(run.settings, "")), **dict(_flat(run.scoring, _SCORING))}
    return {name: value for name, value in settings.items() if name not in _OF_ONE_RUN}


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield each setting and its value as text. A setting within another has both names, joined by a point."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(runs: Sequence[Mapping[str, str]], name: str) -> list[str]:
    return list(dict.fromkeys(settings[name] for settings in runs if name in settings))
