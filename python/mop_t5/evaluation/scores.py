"""scores.json: the mean scores of an evaluation, by system and scenario, as numbers between 0 and 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mop_t5.evaluation.rouge import Scores
from mop_t5.files import failure_in_a_sentence, replace_file

SCORES = "scores.json"


def write_scores(folder: str | Path, means: Mapping[str, Mapping[str, Scores]]) -> None:
    """Write them whole: whoever finds the file finds all of it. means: system -> scenario -> `Scores`."""
    content = {system: {name: s._asdict() for name, s in scenarios.items()} for system, scenarios in means.items()}
    with failure_in_a_sentence(SCORES, folder):
        replace_file(Path(folder) / SCORES, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_scores(folder: str | Path) -> dict[str, dict[str, Scores]]:
    """What `write_scores` wrote to this folder. Raises ValueError if the file is damaged."""
    path = Path(folder) / SCORES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            system: {name: Scores(**scores) for name, scores in scenarios.items()}
            for system, scenarios in content.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Evaluate again with --overwrite.") from error
