"""Find the files of a checkpoint: a folder, or a repository on the model hub."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from mop_t5.files import StrPath, read_json

_OTHER_FOLDERS = {  # file of a folder without config.json -> what the folder is, and what to do
    "mop_config.json": "It is an adapter folder: load its backbone first, then mop_t5.load(backbone, folder).",
    "adapter_config.json": "It is an adapter folder of PEFT: call merge_and_unload(), and save_pretrained its result.",
    "run.json": "It is the folder of a run: give the backbone that its run.json names, or its folder backbone.",
}


@dataclass
class Source:
    """The place of a checkpoint, and how the model hub is asked for it.

    Attributes:
        place: Folder of the checkpoint, or its name on the model hub.
        revision: Branch, tag or commit on the hub. None for the main branch.
        subfolder: Folder of the files within `place`. Empty if they are not in a folder.
        token: Access token of the hub. None for the token that is saved on this machine.
        cache_dir: Folder of the downloaded files. None for the cache of the hub.

    Raises:
        TypeError: A field has a wrong type.
        ValueError: `revision` or `subfolder` is empty or leads out of the place, or `revision` is given for a folder.
    """

    place: StrPath
    revision: str | None = None
    subfolder: str = ""
    token: str | bool | None = None
    cache_dir: StrPath | None = None

    def __post_init__(self) -> None:
        self.place = os.fspath(self.place)
        for name, value, kind in (("revision", self.revision, str | None), ("subfolder", self.subfolder, str)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a string; got {value!r}.")
        if not isinstance(self.token, str | bool | None):
            raise TypeError(f"token must be a string, True or False; got a {type(self.token).__name__}.")  # never shown
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, os.PathLike)):
            raise TypeError(f"cache_dir must be a path; got {self.cache_dir!r}.")
        if self.revision is not None and (not self.revision.strip() or os.path.isdir(self.place)):
            raise ValueError(
                f"revision must name a branch, a tag or a commit on the model hub; got {self.revision!r} for "
                f"{self.place!r}. A folder has no revisions: leave it out."
            )
        if os.path.isabs(self.subfolder) or ".." in Path(self.subfolder).parts:
            raise ValueError(f"subfolder must name a folder within {self.place!r}; got {self.subfolder!r}.")

    def __str__(self) -> str:
        """Return the place with its subfolder, for messages."""
        return f"{self.place}/{self.subfolder}" if self.subfolder else str(self.place)

    @property
    def folder(self) -> Path:
        """The local folder of the files, which exists if `place` is no hub name."""
        return Path(self.place, self.subfolder)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments besides `place` for from_pretrained and cached_file."""
        return {name: value for name, value in vars(self).items() if name != "place"}

    def find(self, file: str) -> Path | None:
        """Return the path of a file. None if there is no such file."""
        found = cached_file(self.place, file, _raise_exceptions_for_missing_entries=False, **self.arguments)
        return None if found is None else Path(found)

    def find_json(self, file: str) -> dict[str, Any]:
        """Return the JSON object in a file. Empty if there is no such file.

        Raises:
            ValueError: The file does not hold a JSON object.
        """
        path = self.find(file)
        return {} if path is None else read_json(path, "")


def check_folder(source: Source) -> None:
    """Raise ValueError if a folder exists and is not the folder of a backbone."""
    if not os.path.isdir(source.place):
        return
    path = str(source)
    if not source.folder.is_dir():
        raise ValueError(f"subfolder {source.subfolder!r} is no folder of {source.place!r}. Check the spelling.")
    holds = set(os.listdir(source.folder))
    if "config.json" not in holds:
        cures = (cure for file, cure in _OTHER_FOLDERS.items() if file in holds)
        cure = next(cures, "Expected a folder written by save_pretrained.")
        raise ValueError(f"path_or_hub_name {path!r} has no config.json. {cure}")
    if "adapter_config.json" in holds:
        raise ValueError(
            f"path_or_hub_name {path!r} holds an adapter of PEFT (adapter_config.json) beside the backbone. Call "
            "merge_and_unload() and save_pretrained its result, or remove the adapter's files to use the backbone "
            "without the adapter."
        )


def is_prequantised(place: StrPath) -> bool:
    """Return whether config.json in a folder says that its weights are quantised. False for a name on the hub.

    Raises:
        ValueError: config.json is damaged.
    """
    return os.path.isdir(place) and "quantization_config" in Source(place).find_json("config.json")
