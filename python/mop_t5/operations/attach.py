"""The public calls on one model: attach, detach, save, load, push_to_hub, count_parameters, scenario_ids."""

import os
import tempfile
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.attached_model import SUBMODULE, AttachedT5, attached, changeable, is_attached
from mop_t5.attachment.experts import check_forward
from mop_t5.attachment.inject import attach_method, detach_method
from mop_t5.attachment.method import Device, Method, MethodConfig, Where
from mop_t5.attachment.wrappers import check_not_wrapped, unwrapped
from mop_t5.backbone.identity import check_readable, check_same_backbone, weights_of
from mop_t5.backbone.load import BackboneShape, check_backbone
from mop_t5.backbone.placement import check_embeddings
from mop_t5.backbone.weights import device_of, size_of
from mop_t5.checks import errors_at
from mop_t5.methods import get, of_config
from mop_t5.storage import adapter_folder, hub


class ParameterCount(NamedTuple):
    """Numbers of parameters."""

    trained: int  # parameters that require a gradient
    total: int  # backbone and method, with the frozen values of both
    backbone: int
    share: float  # trained / backbone


def attach(model: PreTrainedModel, method: str | MethodConfig, **fields: Any) -> AttachedT5:
    """Attach a method to a plain backbone.

    The backbone is frozen; only the method's parameters require gradients. They are made on the model's device, in
    float32, or in float64 if the model is.

    Args:
        model: The backbone.
        method: Name of the method, or a config object.
        fields: Fields of the config, if `method` is a name.

    Returns:
        The same model object.

    Raises:
        ValueError: A field is wrong, or the backbone has a weight that `save` cannot read.
        RuntimeError: A method is attached already.
        TypeError: model is not a T5, or is a wrapper.
    """
    backbone = _plain(model)
    check_readable(weights_of(backbone).present)
    if isinstance(method, MethodConfig):
        if fields:
            raise ValueError(
                f"fields ({', '.join(sorted(fields))}) cannot be given beside a config object. Put them in the config."
            )
        config, method_class = method, of_config(method)
    else:
        method_class = get(method)
        config = method_class.Config.make(fields)
    made = build_method(method_class, config, backbone)
    started = {} if backbone.shared.weight.is_meta else made.initialise(backbone) or {}
    t5 = attach_method(backbone, made)
    t5.load_state_dict(started, strict=False)
    return t5


def _plain(model: PreTrainedModel) -> T5:
    """Return model; raise unless it is a T5, mT5 or umT5 itself without a method."""
    check_not_wrapped(model)
    if is_attached(model):
        raise RuntimeError(f"model has the method {model.mop.name!r} attached already. Call mop_t5.detach first.")
    check_backbone(model)
    check_embeddings(model)
    return cast(T5, model)


def build_method(
    method_class: type[Method], config: MethodConfig, model: T5, device: torch.device | str | None = None
) -> Method:
    """Return the method's module with fresh parameters that fit model. model stays as it is.

    device: Device of the parameters. None: the model's.
    """
    weight = model.shared.weight
    where: Where = {
        "device": device_of(model.shared) if device is None else device,
        "dtype": torch.float64 if weight.dtype == torch.float64 else torch.float32,
    }
    method = method_class(config, BackboneShape.of(model), **where)
    for stack, layer in method.expert_places:
        check_forward(getattr(model, stack).block[layer], f"{stack}.block[{layer}]", "attach a method")
    method.build(model, **where)
    return method


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the attached method and return the same model object, plain and as it was before attach, bit for bit.

    Raises:
        RuntimeError: No method is attached, or the backbone was changed since. The model stays as it was.
        TypeError: model is a wrapper, as of torch.compile.
    """
    return detach_method(changeable(model))


def save(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Write the attached method to folder: its parameters, its config, and which backbone it was trained on.

    A model card (README.md) is written, too. A card that was changed by hand stays as it is.

    Raises:
        RuntimeError: No method is attached. model.save_pretrained(folder) saves a plain backbone.
        OSError: The disk is full or the folder cannot be written. Files that were in it stay as they were.
    """
    attached(model).save_pretrained(folder)


def load(
    model: PreTrainedModel, folder: str | os.PathLike, *, revision: str | None = None, token: hub.Token = None
) -> AttachedT5:
    """Attach a saved method to a plain backbone, with its weights. Return the same model object.

    On an error the model is unchanged. `model.hub_commit` is the commit of an adapter of the model hub. Give it as
    `revision` to load the same adapter again, without asking the hub if the cache has it.

    Args:
        model: The backbone.
        folder: The folder of the adapter, or the name of its repository on the model hub, owner/name. A folder of this
            name comes first.
        revision: A branch, a tag or a commit of the repository. None for the branch main.
        token: A token of the hub. None takes the token of the login, and False takes none.

    Raises:
        ValueError: The adapter belongs to a backbone of other sizes or other weights (see
            backbone.identity.hash_weights), a file is damaged, the repository holds something else, or `revision` is
            given for a folder.
        FileNotFoundError: A file, the repository or the revision is missing, or the token may not see the repository.
        ConnectionError: The hub cannot be reached, and the cache does not hold the adapter. If it does, a warning
            names the commit that is loaded.
        PermissionError: The hub refuses the token.
    """
    backbone, name, commit = _plain(model), folder, None
    if hub.is_hub_name(folder):
        folder = found = hub.download(str(folder), revision=revision, token=token)
        name, commit = f"{name} at {found.name}", found.name
    elif revision is not None:
        raise ValueError(
            f"revision {revision!r} is for a repository of the model hub, owner/name; got the folder "
            f"{os.fspath(folder)!r}. Leave revision out."
        )
    description, tensors = adapter_folder.read(folder)
    check_same_backbone(backbone, description["backbone"], weights_of(backbone), name)
    with errors_at(str(folder)):
        method_class = get(description["method"])
        config = method_class.Config.make(description["config"])
        # without memory first: the description may name any number, and the tensors of the file show if it is true
        try:
            planned = build_method(method_class, config, backbone, device="meta")
        except RuntimeError as error:  # more values than torch can count
            raise ValueError(f"no such method can be built ({error}). Save it again.") from error
    expected = planned.state_dict(prefix=f"{SUBMODULE}.")
    expected |= {name: p for name, p in backbone.named_parameters() if planned.trains_backbone(name)}
    adapter_folder.check_tensors(folder, tensors, expected)
    t5 = attach_method(backbone, build_method(method_class, config, backbone))
    t5._mop_record.hub_commit = commit
    t5.load_state_dict(tensors, strict=False)
    return t5


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    private: bool = False,
    token: hub.Token = None,
    revision: str | None = None,
    commit_message: str | None = None,
    licence: str | None = None,
) -> str:
    """Upload the attached method to the model hub in one commit: its parameters, its config and a model card.

    `mop_t5.load(backbone, repo_id)` loads it. The repository and the branch are made if they do not exist. A
    repository that holds something else than an adapter is refused. Call this function in one process only.

    Args:
        model: The attached model.
        repo_id: The repository, owner/name.
        private: The repository must be private. False makes a new repository as the account's settings say.
        token: A token of the hub that may write. None takes the token of the login.
        revision: The branch. None for main.
        commit_message: The message of the commit.
        licence: The licence of the adapter for the model card, by its name on the hub, such as "apache-2.0".

    Returns:
        The commit, for `revision` of mop_t5.load. If nothing has changed, it is the newest commit of the branch.

    Raises:
        RuntimeError: No method is attached.
        ValueError: An argument is malformed, or the repository is public or holds something else.
        ConnectionError: The hub cannot be reached.
        PermissionError: There is no token, or it may not write to the repository.
    """
    t5 = attached(model)
    with tempfile.TemporaryDirectory() as folder:
        t5.save_pretrained(folder)
        adapter_folder.write_card(folder, licence=licence)
        return hub.upload(
            folder, repo_id, private=private, token=token, revision=revision, commit_message=commit_message
        ).oid


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    """Count the parameters: trained, all, and the backbone's. Works on device="meta". A tied weight counts once."""
    t5 = unwrapped(model)
    sizes = {name: size_of(parameter) for name, parameter in t5.named_parameters()}
    trained = sum(sizes[name] for name, parameter in t5.named_parameters() if parameter.requires_grad)
    backbone = sum(size for name, size in sizes.items() if not name.startswith(f"{SUBMODULE}."))
    buffers = sum(buffer.numel() for buffer in t5.mop.buffers()) if is_attached(t5) else 0
    return ParameterCount(trained, sum(sizes.values()) + buffers, backbone, trained / backbone)


def scenario_ids(model: PreTrainedModel, names: str | list[str], device: Device = None) -> torch.Tensor:
    """Return the ids of scenario names, int64 (len(names),); (1,) for a single name.

    Raises:
        RuntimeError: No method is attached.
        TypeError: `names` is not a name or a list of names.
        ValueError: A name is unknown.
    """
    t5 = attached(model)
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, (list, tuple)) or any(not isinstance(name, str) for name in names):
        raise TypeError(f"names must be a scenario or a list of scenarios; got {names!r}.")
    if unknown := sorted(set(names) - set(t5.scenarios)):
        known = ", ".join(t5.scenarios) or "none: the method has none"
        raise ValueError(f"unknown scenario {', '.join(unknown)}; expected one of {known}.")
    return torch.tensor([t5.scenarios.index(name) for name in names], dtype=torch.int64, device=device)
