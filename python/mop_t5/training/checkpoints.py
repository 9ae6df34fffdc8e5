"""Write checkpoints that are complete or absent, and find the checkpoint to resume from.

Trainer writes the files of a checkpoint one after another into the final folder. Here it writes them into `.writing`.
When all files are on the disk, a list of their checksums is added and the folder gets its final name. A process that is
killed at any moment leaves all earlier checkpoints, and at most one incomplete checkpoint in `.writing`, which the next
save removes.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mop_t5.attachment.attached_model import attached, backbone_parameters, is_attached
from mop_t5.attachment.method import Method
from mop_t5.backbone.identity import check_same_backbone
from mop_t5.files import checksum, failure_in_a_sentence, flush, flush_tree, put_in_place, remove_folder, write_durably
from mop_t5.operations.contents import Content, write_contents
from mop_t5.storage import adapter_folder

FILES = "files.json"  # {"files": {name: SHA-256}}; its presence means that the checkpoint is complete
_WRITING = ".writing"


class WholeCheckpoints(Seq2SeqTrainer):
    """A trainer that writes complete checkpoints. If it cannot, it raises OSError and keeps earlier checkpoints.

    Attributes:
        made_of: contents.json of each checkpoint. A resumed run must have the same contents.
    """

    _writes = False
    made_of: Mapping[str, Content] = {}

    def _get_output_dir(self, trial: object) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _WRITING) if self._writes else folder

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with failure_in_a_sentence(name, folder):
            if self.args.should_save:
                remove_folder(folder / _WRITING)
            self.accelerator.wait_for_everyone()
            self._writes = True
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # every process has written its random state
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(folder / name)
                if self.args.should_save:
                    self.state.save_to_json(str(folder / _WRITING / name / "trainer_state.json"))
                    write_contents(folder / _WRITING / name, self.made_of)
                    _seal(folder / _WRITING / name)
                    put_in_place(folder / _WRITING / name, folder / name)
                    self._remove_old(folder)
            finally:
                self._writes = False
                if self.args.should_save:
                    shutil.rmtree(folder / _WRITING, ignore_errors=True)
            self.accelerator.wait_for_everyone()

    def _remove_old(self, folder: Path) -> None:
        """Remove all but the best and the newest checkpoints, up to save_total_limit in all."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        ordered = [path for path in checkpoints(folder) if best is None or path != Path(best)]
        kept = limit - (len(ordered) < len(checkpoints(folder))) if limit else len(ordered)
        for path in ordered[: max(0, len(ordered) - max(1, kept))]:
            remove_folder(path)


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints of a folder, the oldest first."""
    found = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal() and (path / FILES).is_file():
            found.append((int(step), path))
    return [path for _, path in sorted(found)]


def check_none(folder: str | Path) -> None:
    """Raise FileExistsError if there are checkpoints, because a new run could later resume from an old checkpoint."""
    if checkpoints(folder):
        raise FileExistsError(
            f"{str(folder)!r} holds checkpoints of an earlier run. Resume it, choose another output, or delete them."
        )


def checkpoint_to_resume(folder: str | Path, model: PreTrainedModel) -> str:
    """Return the newest complete checkpoint.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint is damaged, or was made with another backbone, another method or other fields.
    """
    whole = checkpoints(folder)
    if not whole:
        raise FileNotFoundError(
            f"{str(folder)!r} has no complete checkpoint to resume from: save_every was 0, or the run ended "
            "before the first checkpoint was written. Train without resume."
        )
    newest = whole[-1]
    _check_files(newest)
    method = attached(model).mop if is_attached(model) else None
    if method is not None:
        _check_belongs_to(model, method, newest)
    return str(newest)


def _check_belongs_to(model: PreTrainedModel, method: Method, checkpoint: Path) -> None:
    description, _ = adapter_folder.read(checkpoint)
    if description["method"] != method.name:
        raise ValueError(f"{str(checkpoint)!r} has the method {description['method']!r}, not {method.name!r}.")
    saved, config = description["config"], json.loads(json.dumps(method.config.to_dict()))
    other = [
        f"{key}: saved {saved.get(key)!r}, here {config[key]!r}" for key in config if saved.get(key) != config[key]
    ]
    if other:
        raise ValueError(
            f"{str(checkpoint)!r} has other fields ({'; '.join(other)}). Attach the method with the saved fields."
        )
    check_same_backbone(model, description["backbone"], backbone_parameters(model), checkpoint)


def _seal(checkpoint: Path) -> None:
    """Wait until all files are on the disk, and write the list of their checksums."""
    files = {str(path.relative_to(checkpoint)): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    flush_tree(checkpoint)
    sums = {name: checksum(path) for name, path in files.items()}
    write_durably(checkpoint / FILES, (json.dumps({"files": sums}, indent=2) + "\n").encode())
    flush(checkpoint)


def _check_files(checkpoint: Path) -> None:
    cure = "Delete this folder to resume from the checkpoint before it."
    try:
        sums = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(checkpoint)!r} is damaged: {FILES} cannot be read. {cure}") from error
    for name, expected in sums:
        if not (checkpoint / name).is_file():
            raise ValueError(f"{str(checkpoint)!r} is damaged: {name} is missing. {cure}")
        if checksum(checkpoint / name) != expected:
            raise ValueError(f"{str(checkpoint)!r} is damaged: {name} has changed since it was saved. {cure}")
