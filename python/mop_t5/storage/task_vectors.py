"""Task vectors: what a router of the task-level mixture of experts reads of each task (scenario).

A safetensors file of one tensor, "vectors" (tasks, width) in float32, with the names of the tasks and how they were
made in its metadata. `mop-t5 task-vectors` writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mop_t5.files import failure_in_a_sentence, replace_file

_TENSOR = "vectors"


def random_vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """(count, width) float32, standard normal; the first ones do not depend on how many there are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(width, generator=generator) for _ in range(count)])


def write(path: str | os.PathLike, tasks: Sequence[str], vectors: torch.Tensor, about: dict) -> None:
    """Write vectors (tasks, width), whole or not at all. about: how they were made, as JSON holds it.

    Raises ValueError for another shape and for values that are not finite.
    """
    if vectors.dim() != 2 or len(vectors) != len(tasks):
        raise ValueError(f"vectors must have shape ({len(tasks)}, width), a row a task; got {tuple(vectors.shape)}.")
    if not vectors.isfinite().all():
        raise ValueError("vectors must be finite; got some that are not. Make them anew.")
    metadata = {"tasks": json.dumps(list(tasks)), "about": json.dumps(about)}
    content = save({_TENSOR: vectors.detach().float().cpu().contiguous()}, metadata)
    path = Path(path)
    with failure_in_a_sentence("the task vectors", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def read(path: str | os.PathLike, tasks: Sequence[str]) -> torch.Tensor:
    """(tasks, width) float32, on the CPU: the vectors of these tasks, in this order.

    Raises FileNotFoundError where there is no file, ValueError for another one and for a task that it does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no task vectors at {str(path)!r}. Make them by `mop-t5 task-vectors`.")
    try:
        with safe_open(path, "pt") as file:
            known, vectors = json.loads((file.metadata() or {})["tasks"]), file.get_tensor(_TENSOR)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no task vectors. Make them by `mop-t5 task-vectors`.") from error
    missing = [task for task in tasks if task not in known]
    if missing:
        raise ValueError(
            f"{str(path)!r} has no vector for {', '.join(missing)}; it has {', '.join(known)}. Make vectors for all "
            "tasks by `mop-t5 task-vectors`."
        )
    return vectors[[known.index(task) for task in tasks]]
