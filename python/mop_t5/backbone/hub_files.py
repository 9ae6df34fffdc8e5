"""Single files of a folder or of a repository on the model hub, found the same way in both."""

import json
from pathlib import Path

from transformers.utils import cached_file


def find(path_or_hub_name: str, file: str) -> Path | None:
    """Return the path of a file of a folder or of a hub repository, None where it has none of that name."""
    found = cached_file(path_or_hub_name, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def read_json(path_or_hub_name: str, file: str) -> dict:
    """Return the JSON object of a file of a folder or of a hub repository, an empty one where it has no such file."""
    path = find(path_or_hub_name, file)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object; got {type(content).__name__}")
    return content
