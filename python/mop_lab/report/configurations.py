"""What runs were made with: the settings that all have in common, and those in which systems differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mop_lab.finished_runs import FinishedRun, FinishedSystem

_SCORING = "evaluation."
_OF_ONE_RUN = {"seed", "seeds", "scenarios", f"{_SCORING}run"}  # the page says them elsewhere


class Configurations(NamedTuple):
    """shared: setting -> value, of all runs. own: system -> setting -> its values, those of its runs that differ."""

    shared: Mapping[str, str]
    own: Mapping[str, Mapping[str, Sequence[str]]]

    @property
    def scored_alike(self) -> bool:
        """Whether all were scored on the same split in the same way."""
        return not any(name.startswith(_SCORING) for settings in self.own.values() for name in settings)


def configurations(systems: Sequence[FinishedSystem]) -> Configurations:
    """Raises ValueError for a damaged run.json."""
    of_runs = {s.label: [_settings(run) for runs in s.seeds.values() for run in runs] for s in systems}
    every = [settings for runs in of_runs.values() for settings in runs]
    names = dict.fromkeys(name for settings in every for name in settings)
    shared = {n: every[0][n] for n in names if all(n in s and s[n] == every[0].get(n) for s in every)}
    own = {
        label: {n: values for n in names if n not in shared and (values := _values(runs, n))}
        for label, runs in of_runs.items()
    }
    return Configurations(shared, own)


def _settings(run: FinishedRun) -> dict[str, str]:
    """Setting -> its value as it is shown; a setting within another has the names of both, with a point between."""
    found: dict[str, str] = {}

    def add(settings: Mapping[str, Any], prefix: str) -> None:
        for name, value in settings.items():
            if isinstance(value, dict) and value:
                add(value, f"{prefix}{name}.")
            elif prefix + name not in _OF_ONE_RUN:
                found[prefix + name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    add(run.settings, "")
    add(run.scoring, _SCORING)
    return found


def _values(runs: Sequence[Mapping[str, str]], name: str) -> list[str]:
    return list(dict.fromkeys(settings[name] for settings in runs if name in settings))
