"""Adapter folders on the model hub, by huggingface_hub.

An adapter is three files of a repository: the weights, the description and the card. No other file is uploaded or
downloaded, so nothing that is read can run code. Every error is one sentence.
"""

import inspect
import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, errors, hf_hub_download, try_to_load_from_cache
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from mop_t5.files import StrPath, in_a_line
from mop_t5.storage import adapter_folder
from mop_t5.storage.adapter_folder import CONFIG_NAME, WEIGHTS_NAME
from mop_t5.storage.hub_answers import answer_in_a_sentence, at
from mop_t5.storage.model_card import CARD_NAME, LIBRARY

Token = str | bool | None
_BRANCH = "main"  # the revision of a repository if none is named
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_OTHERS = {  # file of a repository without an adapter -> what the repository holds
    "adapter_config.json": "an adapter of PEFT. Load it by the library peft",
    "config.json": "a whole model. Load it by mop_t5.load_backbone",
}


def is_hub_name(place: StrPath) -> bool:
    """Return whether `place` names a repository of the hub: a text of the form owner/name, and no path that exists."""
    if not isinstance(place, str) or os.path.lexists(place):
        return False
    try:
        check_name("name", place)
    except ValueError:
        return False
    return True


def check_name(field: str, name: str) -> None:
    """Raise ValueError unless `name` is a repository of the form owner/name. field: Its name, for the message."""
    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise errors.HFValidationError("it has no owner")
    except errors.HFValidationError as error:
        raise ValueError(
            f"{field} must be owner/name, as of a repository on the model hub; got {name!r} ({in_a_line(error)})."
        ) from None


def download(name: str, *, revision: str | None = None, token: Token = None) -> Path:
    """Return the folder of an adapter of the hub in the cache. Its name is the commit that both files belong to.

    Files in the cache are not fetched again. If the hub cannot be reached, the adapter comes from the cache with a
    warning (without it if HF_HUB_OFFLINE=1). A hub that refuses is an error, whatever the cache holds.

    Args:
        name: The repository, owner/name.
        revision: A branch, a tag or a commit. None for the branch main.
        token: A token of the hub. None takes the token of the login, and False takes none.

    Raises:
        ConnectionError: The hub cannot be reached, and the cache does not hold the whole adapter.
        FileNotFoundError: There is no such repository or revision, or the token may not see it.
        PermissionError: The hub refuses the token.
        ValueError: The repository holds something else.
    """
    check_name("name", name)
    _check_token(token)
    if revision is not None and _COMMIT.fullmatch(revision) and (known := _cached(name, revision)) is not None:
        return known  # a commit never changes
    try:
        with answer_in_a_sentence(name, revision):
            info = HfApi(token=token, library_name=LIBRARY).model_info(name, revision=revision)
            _check_holds_adapter(name, _files(info))
            # notes in the cache which commit the revision is, for work without the hub
            fetch = partial(hf_hub_download, name, token=token, library_name=LIBRARY)
            fetch(CONFIG_NAME, revision=revision)
            # the branch may have moved on, or be an old one of the cache: both files are those of one known commit
            paths = [fetch(file, revision=info.sha) for file in (CONFIG_NAME, WEIGHTS_NAME)]
    except ConnectionError as error:
        if (known := _cached(name, revision)) is None:
            raise ConnectionError(
                f"{error} The cache does not hold all of {at(name, revision)}, and no folder has this name. Try again "
                "when the hub can be reached."
            ) from error
        if not isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            warnings.warn(
                f"{error} Commit {known.name} of {name} is taken from the cache. The hub may have a newer one.",
                stacklevel=3,
            )
        return known
    return Path(paths[0]).parent


def check_upload(name: str, *, private: bool = False, revision: str | None = None, token: Token = None) -> bool:
    """Return whether the repository of an upload exists, after checks, as far as the hub lets one check.

    Args:
        name: The repository, owner/name.
        private: The repository must be private.
        revision: The branch. None for main.
        token: A token of the hub. None takes the token of the login.

    Raises:
        ConnectionError: The hub cannot be reached.
        PermissionError: There is no token, the hub refuses it, or it may not write to the repository.
        ValueError: The name is malformed, or the repository holds something else, or is public.
    """
    check_name("hub_model_id", name)
    _check_token(token)
    api = HfApi(token=token, library_name=LIBRARY)
    with answer_in_a_sentence(name, revision):
        account = api.whoami()
        access = (account.get("auth") or {}).get("accessToken") or {}
        if access.get("role") == "read":
            raise PermissionError(
                f"the token may only read, and an upload to {name} must write. Make a token that may write."
            )
        try:
            info = api.model_info(name, revision=revision)
        except errors.RevisionNotFoundError:
            info = api.model_info(name)  # the branch will start from main
        except errors.RepositoryNotFoundError as error:
            if isinstance(error, errors.GatedRepoError):
                raise
            _check_owner(name, account)
            return False
        _check_write(api, name)
    _check_takes_adapter(name, info, private)
    return True


def upload(
    folder: StrPath,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    token: Token = None,
) -> CommitInfo:
    """Upload an adapter folder in one commit. Make the repository and the branch if they do not exist.

    Args:
        folder: The adapter folder. Its weights, its description and its card are uploaded.
        name: The repository, owner/name.
        private: The repository must be private.
        revision: The branch. None for main.
        commit_message: The message of the commit.
        token: A token of the hub. None takes the token of the login.

    Returns:
        The commit. It is the newest commit of the branch if the repository has these files already.

    Raises:
        ConnectionError, PermissionError, ValueError: As check_upload raises, or the folder is damaged.
        FileNotFoundError: A file of the folder is missing.
    """
    description, _ = adapter_folder.read(folder)
    card = Path(folder) / CARD_NAME
    if card.is_symlink():  # its content would be published, whatever it is
        raise ValueError(f"{card} is a link to {os.readlink(card)!r}. Put a file there, or remove it.")
    _warn_of_paths(description)
    exists = check_upload(name, private=private, revision=revision, token=token)
    api = HfApi(token=token, library_name=LIBRARY)
    with answer_in_a_sentence(name, revision):
        if not exists:
            api.create_repo(name, private=private or None, exist_ok=True)
        if revision not in (None, _BRANCH):
            api.create_branch(name, branch=str(revision), exist_ok=True)
        info = api.model_info(name, revision=revision)
        _check_takes_adapter(name, info, private)
        files = adapter_folder.files(folder) | {CARD_NAME: card}
        added = [CommitOperationAdd(file, str(path)) for file, path in files.items() if path.is_file()]
        message = commit_message or f"Upload an adapter of {description['method']}"
        return api.create_commit(name, added, commit_message=message, revision=revision)


def _check_holds_adapter(name: str, files: set[str]) -> None:
    """Raise ValueError if a repository with these files holds no adapter."""
    if CONFIG_NAME not in files:
        found = next((what for file, what in _OTHERS.items() if file in files), "something else")
        raise ValueError(f"{name} on the hub has no {CONFIG_NAME}: it holds {found}.")
    if WEIGHTS_NAME not in files:
        pickles = sorted(file for file in files if file.endswith(_PICKLES))
        reason = f" {pickles[0]} may run code when it is read, so mop_t5 reads safetensors only." if pickles else ""
        raise ValueError(f"{name} on the hub has no {WEIGHTS_NAME}.{reason} Upload the adapter by mop_t5.push_to_hub.")


def _check_takes_adapter(name: str, info: ModelInfo, private: bool) -> None:
    """Raise ValueError if an upload would mix an adapter with something else, or publish what should be private."""
    files = _files(info)
    others = [what.partition(".")[0] for file, what in _OTHERS.items() if file in files]
    if WEIGHTS_NAME in files and CONFIG_NAME not in files:
        others.append(f"the {WEIGHTS_NAME} of something else")
    others += [f"{file}, which may run code" for file in sorted(files) if file.endswith(_PICKLES)]
    if others:
        raise ValueError(f"{name} on the hub holds {others[0]}. Choose another repository, or remove it there first.")
    if ".gitignore" in files:
        raise ValueError(
            f"{name} on the hub has a .gitignore, by which the hub leaves files out. Remove it there first."
        )
    if private and info.private is False:
        raise ValueError(
            f"{name} on the hub is public, and private was asked for. Make it private there, or choose another."
        )


def _check_owner(name: str, account: Mapping[str, Any]) -> None:
    """Raise PermissionError if the owner of a new repository is neither the account nor one of its organisations."""
    owner, me = name.partition("/")[0], account.get("name")
    owners = [me, *(one.get("name") for one in account.get("orgs") or [])]
    if account.get("type") == "user" and owner not in owners:
        raise PermissionError(
            f"the token may see no repository {name} and make none: it belongs to {me!r}, who is no member of "
            f"{owner!r}. Choose a name of {', '.join(map(repr, owners))}."
        )


def _check_write(api: HfApi, name: str) -> None:
    """Raise the hub's error if the token may not write to a repository. Pass if the hub cannot tell."""
    if "write" not in inspect.signature(api.auth_check).parameters:  # an earlier huggingface_hub
        return
    try:
        api.auth_check(name, write=True)
    except errors.HfHubHTTPError as error:
        if isinstance(error, errors.RepositoryNotFoundError) or error.response.status_code not in (404, 405):
            raise


def _files(info: ModelInfo) -> set[str]:
    return {file.rfilename for file in info.siblings or []}


def _warn_of_paths(description: dict) -> None:
    """Warn of options that publish the folders of this machine. The checksum of the adapter covers them."""
    options = {option: value for option, value in description["config"].items() if isinstance(value, str)}
    if paths := sorted(option for option, value in options.items() if os.path.isabs(value)):
        warnings.warn(
            f"{CONFIG_NAME} holds paths of this machine, in {', '.join(paths)}, and they are uploaded, too. Train with "
            "relative paths to keep them private.",
            stacklevel=3,
        )


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of the adapter in the cache. None if a file is missing there."""
    found = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if (folder / WEIGHTS_NAME).is_file() else None


def _check_token(token: Token) -> None:
    """Raise an error that does not show the token."""
    if token is not None and not isinstance(token, (str, bool)):
        raise TypeError(f"token must be a string, True, False or None; got {type(token).__name__}.")
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("token must be letters, digits and signs without white space. Copy it again.")
