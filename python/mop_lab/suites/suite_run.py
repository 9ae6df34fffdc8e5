"""One run of a suite: what it trains, where it lies, and whether what lies there is this run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mop_t5.operations.contents import Content, check_same_contents
from mop_t5.operations.run_folder import SETTINGS, check_resumable
from mop_t5.training import TrainingConfig

from mop_lab.suites.systems import System


@dataclass(frozen=True)
class Run:
    """One training.

    scenarios: those it is trained on, or None for all. settings: what its run.json will say. made_of: what its
    contents.json will say.
    """

    system: System
    scenarios: list[str] | None
    training: TrainingConfig
    folder: Path
    settings: dict[str, Any]
    made_of: dict[str, Content]
    trained: int  # parameters
    backbone: int  # parameters

    def check_as_before(self) -> bool:
        """Return whether it is known that the run in the folder, if there is one, is the one that would be made now.

        Not where an earlier version made it. Raises ValueError where it had other settings or contents. The corpus and
        the backbone may have moved where their contents are known.
        """
        if not (self.folder / SETTINGS).is_file():
            return True
        known = check_same_contents(self.folder, self.made_of)
        check_resumable(self.folder, self.settings, may_change=("corpus", "backbone") if known else ())
        return known

    def __str__(self) -> str:
        only = "" if self.scenarios is None else f", {', '.join(self.scenarios)} alone"
        return f"{self.system.label}{only}, seed {self.training.seed}"


def check_scored_as_before(folder: Path, scoring: dict[str, Any]) -> None:
    """Raise ValueError if what is scored in this folder was scored in another way. The corpus may have moved."""
    if (folder / SETTINGS).is_file():
        check_resumable(folder, {"metrics": None} | scoring, may_change=("corpus",))


def file_name(label: str) -> str:
    """Return the name of a folder for a label."""
    return re.sub(r"[^\w+]+", "-", label).strip("-").lower()
