"""Record what a run was made of, as checksums.

A path does not show whether its files have changed. Code that resumes or reports a run compares the checksums. Runs of
earlier versions have no contents.json.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.attachment.attached_model import backbone_parameters
from mop_t5.attachment.method import MethodConfig
from mop_t5.backbone.identity import hash_weights
from mop_t5.data import Example, TaskMetrics
from mop_t5.data.rows import checksum_of
from mop_t5.files import checksum, damage_in_a_sentence, read_json, write_json

CONTENTS = "contents.json"
_CURE = "Copy it again, or train anew."
# a text whose tokens show how a tokenizer cleans, cuts and ends texts
_PROBE = "用户：司机绕路了，多收１２．５元！\nUser:  Don't go to ABC-road…"
Content = dict[str, str | int]  # "sha256", and "rows" of a split


def of_rows(examples: Sequence[Example]) -> Content:
    """Return the content of a split, or of the rows of a split that are used."""
    return {"rows": len(examples), "sha256": checksum_of(examples)}


def of_training(
    train: Sequence[Example],
    valid: Sequence[Example] | None,
    tasks: Mapping[str, TaskMetrics],
    config: MethodConfig | None,
) -> dict[str, Content]:
    """Return the contents of the corpus and of the files that a training reads.

    Args:
        train: The training rows.
        valid: The validation rows. None: the training does not validate.
        tasks: The metrics of the validations.
        config: The config of the method.
    """
    found = {"train": of_rows(train)}
    if valid is not None:
        own = {name: tasks[name].to_dict() for name in sorted({row.scenario for row in valid} & set(tasks))}
        found |= {"valid": of_rows(valid), "tasks.yaml": of_json(own)}
    for name, paths in ({} if config is None else config.sources()).items():
        if (content := _of_files(paths)) is not None:
            found[f"options.{name}"] = content
    return found


def of_backbone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Content]:
    """Return the contents of a backbone's folder. Weights that a method trains have their values from before."""
    return {"backbone": {"sha256": hash_weights(backbone_parameters(model))}, "tokenizer": of_tokenizer(tokenizer)}


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Content:
    """Return the content of a tokenizer: its vocabulary, and its tokens for a text as source and as target."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        known = sorted(tokenizer.get_vocab().items())
    else:
        model = json.loads(backend.to_str())["model"]
        known = [model.get("vocab"), model.get("merges")]
    tokens = [tokenizer([_PROBE])["input_ids"], tokenizer(text_target=[_PROBE])["input_ids"]]
    return of_json([known, tokens, [tokenizer.batch_decode(one, skip_special_tokens=True) for one in tokens]])


def of_json(value: object) -> Content:
    """Return the content of a value that JSON can write."""
    return {"sha256": checksum(json.dumps(value, sort_keys=True).encode())}


def write_contents(folder: str | Path, contents: Mapping[str, Content]) -> None:
    """Write contents.json of a run folder."""
    write_json(Path(folder) / CONTENTS, contents)


def read_contents(folder: str | Path) -> dict[str, Content] | None:
    """Return contents.json of a run folder. None if an earlier version made the run.

    Raises:
        ValueError: The file is damaged.
    """
    path = Path(folder) / CONTENTS
    if not path.is_file():
        return None
    contents = read_json(path, _CURE)
    with damage_in_a_sentence(path, _CURE):
        if not all(isinstance(one["sha256"], str) for one in contents.values()):
            raise ValueError("a checksum is no text")
    return contents


def changes(then: Mapping[str, Content], now: Mapping[str, Content]) -> list[str]:
    """Return one phrase for each content that is in both mappings and differs."""
    changed = [name for name in now if name in then and then[name]["sha256"] != now[name]["sha256"]]
    return [_change(name, then[name], now[name]) for name in changed]


def check_same_contents(folder: str | Path, now: Mapping[str, Content]) -> bool:
    """Return whether the contents of the run in `folder` are known. They are not if an earlier version started it.

    Raises:
        ValueError: The run was started with other contents.
    """
    then = read_contents(folder)
    if then is None:
        return False
    if changed := changes(then, now):
        raise ValueError(
            f"{folder} cannot be resumed with other data: {'; '.join(changed)}. Take back what was there, or start "
            "anew with another --output."
        )
    return True


def warn_of_unknown(what: str) -> None:
    """Warn that the contents of a run of an earlier version cannot be compared. what: name of the run."""
    warnings.warn(
        f"{what} was made by an earlier version, which did not record what the corpus and the backbone held. It "
        "cannot be checked whether they have changed.",
        stacklevel=2,
    )


def _change(name: str, then: Content, now: Content) -> str:
    if "rows" in now:
        rows = f"{then.get('rows')} rows then, {now['rows']} now"
        return f"the {name} split changed ({rows}{'' if then.get('rows') != now['rows'] else ', with other content'})"
    return {
        "backbone": "the backbone has other weights",
        "tokenizer": "the backbone has another tokenizer",
        "tasks.yaml": "tasks.yaml names other metrics",
        "training": "the run was trained further",
    }.get(name, f"what {name} names has another content")


def _of_files(paths: Iterable[Path]) -> Content | None:
    """Return the content of files and folders together; names within a folder count, its own does not."""
    found = []
    for number, path in enumerate(map(Path, paths)):
        if not path.exists():
            return None
        files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
        found += [(number, str(one.relative_to(path)), checksum(one.read_bytes())) for one in files]
    return of_json(found)
