"""Find and read single files of a folder or of a repository on the model hub."""

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from mop_t5.files import read_json


def find(path_or_hub_name: str, file: str) -> Path | None:
    """Return the path of a file of a folder or hub repository. None if there is no such file."""
    found = cached_file(path_or_hub_name, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def find_json(path_or_hub_name: str, file: str) -> dict[str, Any]:
    """Return the JSON object in a file of a folder or hub repository. Empty if there is no such file.

    Raises:
        ValueError: The file does not hold a JSON object.
    """
    path = find(path_or_hub_name, file)
    return {} if path is None else read_json(path, "")
