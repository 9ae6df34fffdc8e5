"""Store source prompts for ATTEMPT and SPoT in a library on disk.

A library is a folder with one sub-folder per prompt. Each sub-folder is a saved prompt_tuning with one prompt, which
`mop_t5.load` can read, too. All prompts of a library belong to one backbone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mop_t5 import files
from mop_t5.backbone.identity import check_same_backbone, weights_of
from mop_t5.checks import check_int, check_type
from mop_t5.files import StrPath
from mop_t5.storage import adapter_folder

METHOD = "prompt_tuning"  # the method whose adapter folders hold prompts
_TENSOR = "mop.prompt"
_NAME = re.compile(r"\w(?:[\w .+-]*[\w+])?")  # a valid folder name on every system


@dataclass(frozen=True)
class SourcePrompt:
    """One prompt of a library.

    Attributes:
        name: Name of the prompt in the library.
        prompt: Tensor (length, d_model) on the CPU.
        scenarios: Scenarios that the prompt was trained on.
        backbone: Description of the backbone that the prompt was trained for, as in an adapter folder.
    """

    name: str
    prompt: torch.Tensor
    scenarios: tuple[str, ...]
    backbone: dict[str, Any]


def read_adapter(folder: StrPath, scenario: str | None = None) -> SourcePrompt:
    """Return the prompt of a saved prompt_tuning.

    Args:
        folder: The adapter folder.
        scenario: Scenario whose prompt is read. Needed if, and only if, the adapter has one prompt per scenario.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder is damaged, holds another method or values that are not finite, or `scenario` does not
            fit the folder.
    """
    folder = Path(folder)
    description, tensors = adapter_folder.read(folder)
    if description["method"] != METHOD:
        raise ValueError(f"{str(folder)!r} holds the method {description['method']!r}; expected {METHOD!r}.")
    config, d_model = description["config"], description["backbone"]["shape"]["d_model"]
    with files.damage_in_a_sentence(folder / adapter_folder.CONFIG_NAME, "Copy or save it again."):
        scenarios, per_scenario, length = tuple(config["scenarios"]), config["per_scenario"], config["prefix_length"]
        check_type("per_scenario", per_scenario, bool)
        check_int("prefix_length", length, 1)
    size = (length, d_model)
    expected = torch.empty((len(scenarios), *size) if per_scenario else size, device="meta")
    adapter_folder.check_tensors(folder, tensors, {_TENSOR: expected})
    prompt = tensors[_TENSOR]
    if per_scenario:
        if scenario not in scenarios:
            raise ValueError(
                f"{str(folder)!r} has one prompt per scenario; scenario must be one of {', '.join(scenarios)}; got "
                f"{scenario!r}."
            )
        prompt, scenarios = prompt[scenarios.index(scenario)].clone(), (scenario,)
    elif scenario is not None:
        raise ValueError(f"scenario {scenario!r} cannot be chosen: {str(folder)!r} has one prompt for all scenarios.")
    return SourcePrompt(folder.name, prompt, scenarios, description["backbone"])


def add(
    library: StrPath, name: str, adapter: StrPath, scenario: str | None = None, overwrite: bool = False
) -> SourcePrompt:
    """Copy the prompt of a saved prompt_tuning into a library.

    After an interruption the library holds all of the prompt or nothing of it.

    Args:
        library: Folder of the library. It is made if it does not exist.
        name: Name of the prompt in the library.
        adapter: Folder of the saved prompt_tuning.
        scenario: Scenario whose prompt is copied, if the adapter has one prompt per scenario.
        overwrite: True if a prompt of this name is replaced.

    Returns:
        The prompt, as the library holds it.

    Raises:
        FileExistsError: The library has a prompt of this name, and `overwrite` is false.
        FileNotFoundError: A file of the adapter is missing.
        OSError: The prompt cannot be written.
        ValueError: The prompt belongs to another backbone than the library, or `read_adapter` refuses the adapter.
    """
    folder, new = _folder(library, name), read_adapter(adapter, scenario)
    files.content_to_replace(folder, overwrite, cure="Choose another name, or pass overwrite=True (--overwrite).")
    others = [known for known in names(library) if known != name] if Path(library).is_dir() else []
    known = read(library, others[0]).backbone if others else new.backbone
    if any(known[key] != new.backbone[key] for key in ("shape", "sha256")):
        raise ValueError(
            f"{str(Path(adapter))!r} was trained on another backbone than the prompts in {str(Path(library))!r}. A "
            "library holds prompts of one backbone; choose another library."
        )
    config = {"scenarios": new.scenarios, "prefix_length": len(new.prompt), "per_scenario": False}
    description = {"method": METHOD, "config": config, "backbone": new.backbone}
    contents = adapter_folder.contents(description, {_TENSOR: new.prompt})
    with files.whole_folder(folder, f"prompt {name!r}") as writing:
        for file, content in contents.items():
            (writing / file).write_bytes(content)
    return read(library, name)


def names(library: StrPath) -> tuple[str, ...]:
    """Return the names of the prompts of a library in alphabetical order.

    Raises:
        NotADirectoryError: There is no such folder.
    """
    library = Path(library)
    if not library.is_dir():
        raise NotADirectoryError(
            f"library {str(library)!r} is no folder. Make one with "
            "mop_t5.storage.prompt_library.add or `mop-t5 prompts add`."
        )
    return tuple(sorted(path.name for path in library.iterdir() if path.is_dir() and not path.name.startswith(".")))


def read(library: StrPath, name: str) -> SourcePrompt:
    """Return one prompt of a library.

    Raises:
        NotADirectoryError: There is no such library.
        ValueError: The library has no prompt of this name, or the prompt is damaged.
    """
    return read_adapter(_known(library, name))


def remove(library: StrPath, name: str) -> None:
    """Remove a prompt from a library, even a damaged prompt.

    A method that was attached with the prompt holds a copy and keeps working.

    Raises:
        NotADirectoryError: There is no such library.
        OSError: The prompt cannot be removed.
        ValueError: The library has no prompt of this name.
    """
    folder = _known(library, name)
    with files.failure_in_a_sentence(f"the library without {name!r}", library):
        files.remove_folder(folder)


def read_for(model: PreTrainedModel, library: StrPath, chosen: Sequence[str], length: int) -> torch.Tensor:
    """Return prompts of a library that fit a plain backbone.

    Args:
        model: The plain backbone.
        library: Folder of the library.
        chosen: Names of the prompts.
        length: Number of rows that each prompt must have.

    Returns:
        Tensor (len(chosen), length, d_model) on the CPU, in the order of `chosen`.

    Raises:
        NotADirectoryError: There is no such library.
        ValueError: `chosen` is empty, or a prompt is unknown, damaged, of another length or of another backbone.
    """
    if not chosen:
        raise ValueError(f"{str(Path(library))!r} holds no prompt. Add one by `mop-t5 prompts add`.")
    prompts = [read(library, name) for name in chosen]
    for prompt in {str(prompt.backbone): prompt for prompt in reversed(prompts)}.values():
        check_same_backbone(model, prompt.backbone, weights_of(model), Path(library) / prompt.name)
    if others := [f"{p.name} has {len(p.prompt)}" for p in prompts if len(p.prompt) != length]:
        raise ValueError(
            f"prompts of {str(Path(library))!r} must have {length} rows, as many as the prompt to be trained; "
            f"{', '.join(others)}. Choose other prompts, or train a prompt of that length."
        )
    return torch.stack([prompt.prompt for prompt in prompts])


def _folder(library: StrPath, name: str) -> Path:
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a prompt, as a string; got {name!r}.")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name must be letters, digits and, between them, spaces, dots, plus and minus signs; got {name!r}."
        )
    return Path(library) / name


def _known(library: StrPath, name: str) -> Path:
    folder, known = _folder(library, name), names(library)
    if name not in known:
        raise ValueError(
            f"{str(Path(library))!r} has no prompt {name!r}; expected one of {', '.join(known) or 'none: it is empty'}."
        )
    return folder
