"""A library of source prompts on disk, for ATTEMPT and SPoT.

It is a folder with one sub-folder a prompt, and each of these is a saved prompt_tuning of one prompt, which
`mop_t5.load` takes, too. All prompts of a library belong to one backbone.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mop_t5.backbone.identity import check_same_backbone, weights_of
from mop_t5.files import failure_in_a_sentence, remove_folder, whole_folder, write_durably
from mop_t5.storage import adapter_folder

METHOD = "prompt_tuning"  # whose adapters hold prompts
_TENSOR = "mop.prompt"
_NAME = re.compile(r"\w(?:[\w .+-]*[\w+])?")  # a folder's name on every system


@dataclass(frozen=True)
class SourcePrompt:
    """name: in the library. prompt: (length, d_model), on the CPU. scenarios: it was trained on. backbone: which one it
    was trained for, as an adapter folder says it."""

    name: str
    prompt: torch.Tensor
    scenarios: tuple[str, ...]
    backbone: dict


def read_adapter(folder: str | os.PathLike, scenario: str | None = None) -> SourcePrompt:
    """The prompt of a saved prompt_tuning. scenario: whose, needed where it has one for each.

    Raises ValueError for another method, an unknown or missing scenario and for values that are not finite, and what
    mop_t5.load raises for damaged or missing files.
    """
    folder = Path(folder)
    description, tensors = adapter_folder.read(folder)
    if description["method"] != METHOD:
        raise ValueError(f"{str(folder)!r} holds the method {description['method']!r}; expected {METHOD!r}.")
    config, d_model = description["config"], description["backbone"]["shape"]["d_model"]
    scenarios, own = tuple(config["scenarios"]), config["per_scenario"]
    size = (config["prefix_length"], d_model)
    expected = torch.empty((len(scenarios), *size) if own else size, device="meta")
    adapter_folder.check_tensors(folder, tensors, {_TENSOR: expected})
    prompt = tensors[_TENSOR]
    if own:
        if scenario not in scenarios:
            raise ValueError(
                f"{str(folder)!r} has a prompt for each of {', '.join(scenarios)}; scenario must be one of them; got "
                f"{scenario!r}."
            )
        prompt, scenarios = prompt[scenarios.index(scenario)].clone(), (scenario,)
    elif scenario is not None:
        raise ValueError(f"scenario {scenario!r} cannot be chosen: {str(folder)!r} has one prompt for all scenarios.")
    return SourcePrompt(folder.name, prompt, scenarios, description["backbone"])


def add(
    library: str | os.PathLike,
    name: str,
    adapter: str | os.PathLike,
    scenario: str | None = None,
    overwrite: bool = False,
) -> SourcePrompt:
    """Copy the prompt out of the folder of a saved prompt_tuning into the library, which is made if it is not there.

    scenario: whose prompt, where the adapter has one for each. overwrite: replace a prompt of this name. Whatever stops
    it, the prompt is there whole or not at all. Raises what read_adapter raises, ValueError for a prompt of another
    backbone than those in the library, and FileExistsError for a name that is taken.
    """
    folder, new = _folder(library, name), read_adapter(adapter, scenario)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{str(folder)!r} exists. Choose another name, or pass overwrite=True (--overwrite).")
    others = [known for known in names(library) if known != name] if Path(library).is_dir() else []
    known = read(library, others[0]).backbone if others else new.backbone
    if any(known[key] != new.backbone[key] for key in ("shape", "sha256")):
        raise ValueError(
            f"{str(Path(adapter))!r} was trained on another backbone than the prompts in {str(Path(library))!r}. A "
            "library holds prompts of one backbone; choose another."
        )
    config = {"scenarios": new.scenarios, "prefix_length": len(new.prompt), "per_scenario": False}
    description = {"method": METHOD, "config": config, "backbone": new.backbone}
    contents = adapter_folder.contents(description, {_TENSOR: new.prompt})
    with whole_folder(folder, f"prompt {name!r}") as writing:
        for file, content in contents.items():
            write_durably(writing / file, content)
    return read(library, name)


def names(library: str | os.PathLike) -> tuple[str, ...]:
    """The names of the prompts of a library, in alphabetical order. Raises NotADirectoryError where there is none."""
    library = Path(library)
    if not library.is_dir():
        raise NotADirectoryError(
            f"library {str(library)!r} is no folder. Make one with "
            "mop_t5.storage.prompt_library.add or `mop-t5 prompts add`."
        )
    return tuple(sorted(path.name for path in library.iterdir() if path.is_dir() and not path.name.startswith(".")))


def read(library: str | os.PathLike, name: str) -> SourcePrompt:
    """One prompt. Raises ValueError for a name that the library does not have, and what read_adapter raises."""
    return read_adapter(_known(library, name))


def remove(library: str | os.PathLike, name: str) -> None:
    """Remove a prompt, a damaged one too. Methods that were attached with it hold a copy and go on working."""
    folder = _known(library, name)
    with failure_in_a_sentence(f"the library without {name!r}", library):
        remove_folder(folder)


def read_for(model: PreTrainedModel, library: str | os.PathLike, chosen: Sequence[str], length: int) -> torch.Tensor:
    """The chosen prompts of a library, in this order, for a plain backbone: (chosen, length, d_model), on the CPU.

    Raises ValueError for one of another length or of another backbone and for none at all, and what read raises.
    """
    if not chosen:
        raise ValueError(f"{str(Path(library))!r} holds no prompt. Add one by `mop-t5 prompts add`.")
    prompts, checked = [read(library, name) for name in chosen], []
    for prompt in prompts:
        if prompt.backbone not in checked:
            parameters = weights_of(model)
            check_same_backbone(model, prompt.backbone, parameters, Path(library) / prompt.name)
            checked.append(prompt.backbone)
    others = [f"{p.name} has {len(p.prompt)}" for p in prompts if len(p.prompt) != length]
    if others:
        raise ValueError(
            f"prompts of {str(Path(library))!r} must have {length} rows, as the prompt to be trained; "
            f"{', '.join(others)}. Choose others, or train it with as many."
        )
    return torch.stack([prompt.prompt for prompt in prompts])


def _folder(library: str | os.PathLike, name: str) -> Path:
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a prompt; got {name!r}.")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name must be letters, digits and, between them, spaces, dots, plus and minus signs; got {name!r}."
        )
    return Path(library) / name


def _known(library: str | os.PathLike, name: str) -> Path:
    folder, known = _folder(library, name), names(library)
    if name not in known:
        raise ValueError(
            f"{str(Path(library))!r} has no prompt {name!r}; expected one of {', '.join(known) or 'none: it is empty'}."
        )
    return folder
