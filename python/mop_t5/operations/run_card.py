"""Model cards of run folders, and the upload of a run.

card.json of a run folder holds what only the training knows: the sizes of the corpus and the versions of the packages.
"""

import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo

from mop_t5.checks import check_types
from mop_t5.data import Example
from mop_t5.files import damage_in_a_sentence, read_json, write_json
from mop_t5.operations.contents import read_contents
from mop_t5.operations.run_folder import content_of_weights, read_history, read_settings, settings_of_trained
from mop_t5.storage import adapter_folder, hub
from mop_t5.storage.model_card import CARD_NAME, block, check_licence, code, table, without_folders

FACTS = "card.json"
_CURE = "Remove it to leave its sections out of the model card."
_PACKAGES = ("mop-kernels", "torch", "transformers")


@dataclass(frozen=True)
class HubTarget:
    """Where a trained adapter is uploaded, and the licence on its model card.

    Args:
        hub_model_id: repository of the model hub that gets the adapter, as owner/name. It is made if it does not exist.
        hub_private: the repository must be private.
        hub_revision: branch of the repository, if not main. It is made if it does not exist.
        licence: licence of the adapter for its model card, by its name on the hub, such as apache-2.0.
    """

    hub_model_id: str | None = None
    hub_private: bool = False
    hub_revision: str | None = None
    licence: str | None = None

    def __post_init__(self):
        check_types(self)
        check_licence(self.licence)
        if self.hub_model_id is not None:
            hub.check_name("hub_model_id", self.hub_model_id)
        elif self.hub_private or self.hub_revision is not None:
            raise ValueError("hub_private and hub_revision need hub_model_id, the repository, as owner/name.")

    def check(self) -> None:
        """Check that the hub takes an upload, as far as it says so. Nothing is changed. See `hub.check_upload`."""
        if self.hub_model_id is not None:
            hub.check_upload(self.hub_model_id, private=self.hub_private, revision=self.hub_revision)

    @property
    def flags(self) -> str:
        """The flags of `mop-t5 push` for this target."""
        given = {name: value for name, value in asdict(self).items() if value}
        return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items())


def write_facts(folder: str | Path, train: Iterable[Example], valid: Iterable[Example] | None) -> None:
    """Write card.json of a run folder.

    Args:
        folder: The run folder.
        train: The training rows.
        valid: The validation rows, if any.
    """
    corpus = {"train": _sizes(train), "valid": _sizes(valid or ())}
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # as of a source folder on the path
            versions[package] = version(package)
    write_json(Path(folder) / FACTS, {"corpus": corpus, "versions": versions})


def write_run_card(folder: str | Path, licence: str | None = None) -> bool:
    """Write the model card of a run's adapter, with everything that the run folder knows.

    Args:
        folder: The run folder.
        licence: The licence of the adapter. None takes the licence in the settings of the run.

    Returns:
        False if there is a card that was changed by hand. It stays as it is.

    Raises:
        FileNotFoundError: The folder has no settings or no adapter.
        ValueError: A file of the run is damaged.
    """
    folder, settings = Path(folder), read_settings(folder)
    facts = read_json(folder / FACTS, _CURE) if (folder / FACTS).is_file() else {}
    with damage_in_a_sentence(folder / FACTS, _CURE):
        sections = [_of_corpus(facts.get("corpus")), _of_training(read_history(folder), settings)]
        sections += [*_of_evaluations(folder), _of_versions(facts.get("versions"))]
    text = "\n".join(filter(None, sections))
    written = adapter_folder.write_card(folder / "adapter", licence=licence or settings["licence"], sections=text)
    if not written and licence is not None:
        warnings.warn(
            f"licence {licence!r} is not in {folder / 'adapter' / CARD_NAME}, which was changed by hand and stays as "
            "it is. Write it into the metadata there, or remove the card.",
            stacklevel=3,
        )
    return written


def push_run(folder: str | Path, target: HubTarget, commit_message: str | None = None) -> CommitInfo:
    """Upload the adapter of a run, with a model card that has everything that the run folder knows.

    Args:
        folder: The run folder.
        target: The repository.
        commit_message: The message of the commit.

    Returns:
        The commit.

    Raises:
        ConnectionError, PermissionError: The hub cannot be reached, or refuses.
        FileNotFoundError: The folder has no settings or no adapter.
        ValueError: The target names no repository, or the run is damaged or has several seeds or no method.
    """
    settings_of_trained(folder)
    if target.hub_model_id is None:
        raise ValueError("hub_model_id must name a repository of the model hub, as owner/name; got none.")
    if (Path(folder) / "backbone").is_dir():
        raise ValueError(
            f"{folder} trained all weights of its backbone, and holds no adapter. Upload its folder backbone by "
            "`hf upload`."
        )
    write_run_card(folder, target.licence)
    return hub.upload(
        Path(folder) / "adapter",
        target.hub_model_id,
        private=target.hub_private,
        revision=target.hub_revision,
        commit_message=commit_message,
    )


def _sizes(rows: Iterable[Example]) -> dict[str, list[int]]:
    """Return scenario -> [rows, characters of all dialogues, characters of all summaries], without white space."""
    sizes: dict[str, list[int]] = {}
    for row in rows:
        more = (1, *(len("".join(text.split())) for text in (row.dialogue, row.summary)))
        sizes[row.scenario] = [a + b for a, b in zip(sizes.get(row.scenario, (0, 0, 0)), more, strict=True)]
    return sizes


def _of_corpus(corpus: Mapping[str, Mapping[str, Sequence[int]]] | None) -> str:
    if not corpus:
        return ""
    train, valid = corpus["train"], corpus["valid"]
    rows = []
    for scenario in dict.fromkeys([*train, *valid]):
        count, dialogue, summary = train.get(scenario, (0, 0, 0))
        means = [f"{length / count:.1f}" if count else "-" for length in (dialogue, summary)]
        rows.append([code(scenario), f"{count:,}", f"{valid.get(scenario, [0])[0]:,}", *means])
    columns = ["scenario", "training rows", "validation rows", "characters per dialogue", "characters per summary"]
    return f"## Training data\n\nMean lengths of the training rows, without white space.\n\n{table(columns, rows)}"


def _of_training(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    losses = [point for point in history if "loss" in point]
    if not losses:  # as of exported prefixes
        return ""
    rows = [("steps", f"{max(point['step'] for point in history):,}")]
    rows += [(f"loss at step {point['step']:,}", f"{point['loss']:.4f}") for point in (losses[0], losses[-1])]
    names = ("eval_mean", "eval_rouge")  # the first if tasks have metrics of their own
    scored = [(point[name], point["step"], name) for point in history for name in names if name in point]
    if scored:
        best, step, name = max(scored, key=lambda one: one[0])
        rows.append((f"best validation, {name}", f"{best:.2f} at step {step:,}"))
    kept = {name: without_folders(value) for name, value in settings.items() if value not in (None, {}, [])}
    written = yaml.safe_dump(kept, allow_unicode=True, sort_keys=False)
    command = "mop-t5 train --config train.yaml --corpus CORPUS --backbone BACKBONE --output RUN"
    again = "This command trains the adapter again, with the train.yaml below it:"
    again = f"{again}\n\n{block(command, 'bash')}\n{block(written, 'yaml')}"
    return f"## Training\n\n{table(['training', ''], dict.fromkeys(rows))}\n{again}"


def _of_evaluations(folder: Path) -> list[str]:
    """Return a section per evaluation of these weights."""
    sections, weights = [], content_of_weights(folder)
    for path in sorted(folder.glob("evaluation-*/results.md")):
        if not (path.parent / "scores.json").is_file() or not weights:
            continue  # the evaluation is not complete
        if (read_contents(path.parent) or {}).get("training") == weights["training"]:
            split = path.parent.name.partition("-")[2]
            sections.append(f"## Scores on the {split} split\n\n{path.read_text(encoding='utf-8').strip()}\n")
    return sections


def _of_versions(versions: Mapping[str, str] | None) -> str:
    return f"## Versions\n\n{table(['package', 'version'], versions.items())}" if versions else ""
