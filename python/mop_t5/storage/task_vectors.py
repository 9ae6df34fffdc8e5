"""Store task vectors. A router of the task-level mixture of experts reads one vector per task (scenario).

The file is a safetensors file with one tensor, "vectors" (tasks, width) in float32. Its metadata holds the names of the
tasks and how the vectors were made, as one JSON object under one key: safetensors writes several keys in random order.
So equal vectors give equal bytes, and a resumed run recognises the file. Files of earlier versions have the two keys
"tasks" and "about". `mop-t5 task-vectors` writes the file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mop_t5.backbone.tensors import check_floating, read_tensors
from mop_t5.checks import check_names
from mop_t5.files import StrPath, failure_in_a_sentence, parse_json, replace_file

_TENSOR = "vectors"
_METADATA = "task_vectors"
_CURE = "Make vectors for all tasks by `mop-t5 task-vectors`."


def random_vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return (count, width) standard normal values in float32. The first rows do not depend on `count`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(width, generator=generator) for _ in range(count)])


def write(path: StrPath, tasks: Sequence[str], vectors: torch.Tensor, about: Mapping[str, object]) -> None:
    """Write the vectors of tasks. An interruption leaves the old file or the new file, never a part.

    Args:
        path: The file.
        tasks: Names of the tasks.
        vectors: Tensor (len(tasks), width).
        about: How the vectors were made. JSON must be able to hold it.

    Raises:
        OSError: The file cannot be written.
        ValueError: `vectors` has another shape, or a value is not finite.
    """
    if vectors.dim() != 2 or len(vectors) != len(tasks):
        raise ValueError(f"vectors must have shape ({len(tasks)}, width), one row per task; got {(*vectors.shape,)}.")
    if not vectors.isfinite().all():
        raise ValueError("vectors must be finite; got values that are not finite. Make the vectors again.")
    metadata = {_METADATA: json.dumps({"tasks": list(tasks), "about": about})}
    content = save({_TENSOR: vectors.detach().float().cpu().contiguous()}, metadata)
    path = Path(path)
    with failure_in_a_sentence("the task vectors", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def read(path: StrPath, tasks: Sequence[str]) -> torch.Tensor:
    """Return the vectors of tasks as a float32 tensor (len(tasks), width) on the CPU, in the order of `tasks`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no task vectors, or lacks a task.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no task vectors at {str(path)!r}. {_CURE}")
    try:
        with safe_open(path, "pt") as file:
            known = _names(file.metadata() or {})
        vectors = read_tensors(path)[_TENSOR]
        check_names("tasks", known)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no task vectors. {_CURE}") from error
    if vectors.dim() != 2 or len(vectors) != len(known):
        raise ValueError(f"{str(path)!r} must hold {len(known)} vectors; got {tuple(vectors.shape)}. {_CURE}")
    check_floating(path, {_TENSOR: vectors}, {_TENSOR: torch.float32})
    if missing := [task for task in tasks if task not in known]:
        raise ValueError(f"{str(path)!r} has no vector for {', '.join(missing)}; it has {', '.join(known)}. {_CURE}")
    return vectors[[known.index(task) for task in tasks]]


def _names(metadata: Mapping[str, str]) -> list[str]:
    """Return the names of the tasks from the metadata of a file of this version or of an earlier version."""
    if _METADATA in metadata:
        return parse_json(metadata[_METADATA])["tasks"]
    return parse_json(metadata["tasks"])
