"""The adapters of a server: one model per run, on weights that all models share where they are equal."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.attachment.attached_model import attached, is_attached
from mop_t5.evaluation.generation import lengths_of, scenarios_needed
from mop_t5.operations.run_folder import load_run


@dataclass(frozen=True, eq=False)
class Adapter:
    """A run that a server answers with. No other adapter has the same model object.

    Attributes:
        name: The name in requests.
        model: The model of the run.
        tokenizer: The tokenizer of the model.
        method: The name of the method. None if all weights were trained.
        scenarios: The known scenarios. None if the model ignores the scenario.
        max_source: Tokens kept per dialogue.
        max_new_tokens: Tokens of a summary, unless the request asks for fewer.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    method: str | None
    scenarios: Sequence[str] | None
    max_source: int
    max_new_tokens: int


def load_adapters(runs: Sequence[str], backbone: str | None = None) -> dict[str, Adapter]:
    """Return the adapters of run folders by name, in the given order, on the accelerator if there is one.

    Args:
        runs: Each is a run folder, whose name becomes the name of the adapter, or NAME=FOLDER.
        backbone: The folder of a backbone that was moved. It replaces the paths in all runs.

    Raises:
        ValueError: No run is given, two adapters have the same name, or a run is damaged.
        FileNotFoundError: A folder is not a run folder.
    """
    adapters: dict[str, Adapter] = {}
    for name, folder in _named(runs).items():
        model, tokenizer, settings = load_run(folder, backbone, on_accelerator=True)
        share_weights(model, (other.model for other in adapters.values()))
        method = attached(model).mop.name if is_attached(model) else None
        adapters[name] = Adapter(name, model, tokenizer, method, scenarios_needed(model), **lengths_of(settings))
    return adapters


def _named(runs: Sequence[str]) -> dict[str, str]:
    """Return the folders by the names of their adapters."""
    if not runs:
        raise ValueError("run must name at least one run folder; got none.")
    named: dict[str, str] = {}
    for run in runs:
        name, given, folder = run.partition("=")
        if not given or os.path.exists(run):
            name, folder = os.path.basename(os.path.abspath(run)), run
        if not name.strip() or not folder:
            raise ValueError(f"run must be a run folder or NAME=FOLDER; got {run!r}.")
        if name in named:
            raise ValueError(
                f"two runs have the name {name!r}: {named[name]} and {folder}. Give one another name: "
                f"--run ANOTHER={folder}"
            )
        named[name] = folder
    return named


@torch.no_grad()
def share_weights(model: PreTrainedModel, others: Iterable[PreTrainedModel]) -> int:
    """Let the parameters of a model use the memory of equal parameters of other models.

    The models stay separate objects with methods of their own. They must not be trained afterwards: a change of a
    shared weight would change all of them. Weights of tensor subclasses, as of a quantiser, and weights on the disk
    are not shared.

    Args:
        model: The model.
        others: The models whose memory it may use.

    Returns:
        The number of bytes that `model` no longer needs.
    """
    saved = 0
    left = {name: one for name, one in model.named_parameters() if type(one) is nn.Parameter}
    for other in others:
        for name, theirs in other.named_parameters():
            mine = left.get(name)
            if mine is not None and type(theirs) is nn.Parameter and _equal(mine, theirs):
                mine.data = theirs.data
                saved += mine.nbytes
                del left[name]
    return saved


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have equal values on the same device. Values that lie on the disk are not compared."""
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and not one.is_meta and torch.equal(one, other)
