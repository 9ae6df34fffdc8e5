"""What the model hub answers, in sentences."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors

from mop_t5.files import in_a_line

_LOG_IN = "Pass a token of your account, set HF_TOKEN, or run `hf auth login`."


def at(name: str, revision: str | None) -> str:
    """Return the name of a repository with its revision, for messages."""
    return name if revision is None else f"{name} at revision {revision!r}"


@contextmanager
def answer_in_a_sentence(name: str, revision: str | None) -> Iterator[None]:
    """Raise one sentence, as a built-in OSError, if the hub refuses or cannot be reached."""
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token for the hub, and an upload to {name} needs one. {_LOG_IN}") from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} on the hub is gated, and the token may not read it. Ask for access there."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the token may see no repository {name} on the hub, and no folder has this name. Check the name. If the "
            f"repository is private: {_LOG_IN[0].lower()}{_LOG_IN[1:]}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{name} on the hub has no revision {revision!r}. Name a branch, a tag or a commit."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        known = str(error) if status == 401 else error.response.reason_phrase
        said = in_a_line(error.server_message or known)
        if status in (401, 403):
            raise PermissionError(f"the hub refuses {name} to this token ({status}: {said}). {_LOG_IN}") from error
        if status == 429 or status >= 500:
            raise ConnectionError(f"the hub does not serve {name} now ({status}: {said}).") from error
        raise ValueError(f"the hub refuses the request for {at(name, revision)} ({status}: {said}).") from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError("the hub is not asked, because HF_HUB_OFFLINE is set.") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(f"the hub does not serve the files of {at(name, revision)} now.") from error
    except ValueError as error:
        said = in_a_line(error)
        if not said.startswith("Invalid metadata"):
            raise
        raise ValueError(f"the hub refuses the model card ({said}). Correct README.md or the licence.") from error
    except OSError as error:
        if error.errno is not None or not str(error).startswith("Consistency check failed"):
            raise
        raise ConnectionError(f"the hub served a part of a file of {at(name, revision)}.") from error
    except RuntimeError as error:  # of hf_xet, which transfers large files
        raise ConnectionError(f"the transfer of {at(name, revision)} broke off ({in_a_line(error)}).") from error
    except errors.HTTPError as error:
        raise ConnectionError(f"the hub cannot be reached ({in_a_line(error)}).") from error
