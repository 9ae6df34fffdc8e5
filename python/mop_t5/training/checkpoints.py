"""Write checkpoints that are complete or absent, and find the checkpoint to resume from.

Trainer writes the files of a checkpoint one after another into the final folder. Here it writes them into `.writing`.
When all files are on the disk, a list of their checksums is added and the folder gets its final name. A process that is
killed at any moment leaves all earlier checkpoints, and at most one incomplete checkpoint in `.writing`, which the next
save removes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mop_t5.attachment.attached_model import attached, backbone_parameters, is_attached
from mop_t5.attachment.method import Method
from mop_t5.backbone.identity import check_same_backbone
from mop_t5.checks import check_type
from mop_t5.files import (
    StrPath,
    checksum,
    damage_in_a_sentence,
    failure_in_a_sentence,
    flush_tree,
    put_in_place,
    read_json,
    remove_folder,
    replace_file,
)
from mop_t5.operations.contents import Content, write_contents
from mop_t5.storage import adapter_folder
from mop_t5.training.config import TrainingConfig
from mop_t5.training.zero import check_zero_files

# {"files": {name: SHA-256}, "batches_per_step": batches of all processes, "engine": see _engine}; its presence means
# that the checkpoint is complete
FILES = "files.json"
_WRITING = ".writing"


class WholeCheckpoints(Seq2SeqTrainer):
    """A trainer that writes complete checkpoints. If it cannot, it raises OSError and keeps earlier checkpoints.

    Attributes:
        made_of: contents.json of each checkpoint. A resumed run must have the same contents.
        shard: How the processes share the model, see TrainingConfig.
    """

    made_of: Mapping[str, Content] = {}
    shard = "no"

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with failure_in_a_sentence(name, folder):
            if self.args.should_save:
                remove_folder(folder / _WRITING)
            self.accelerator.wait_for_everyone()
            self.args.output_dir = str(folder / _WRITING)
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # every process has written its random state
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(folder / name)
                if self.args.should_save:
                    # a pickle that nobody reads: what is handed on should hold none
                    (folder / _WRITING / name / TRAINING_ARGS_NAME).unlink(missing_ok=True)
                    self.state.save_to_json(str(folder / _WRITING / name / "trainer_state.json"))
                    write_contents(folder / _WRITING / name, self.made_of)
                    step = self.args.gradient_accumulation_steps * self.args.world_size
                    engine = _engine(self.shard, self.args.world_size)
                    _seal(folder / _WRITING / name, {"batches_per_step": step, "engine": engine})
                    put_in_place(folder / _WRITING / name, folder / name)
                    self._remove_old(folder)
            finally:
                self.args.output_dir = str(folder)
                if self.args.should_save:
                    shutil.rmtree(folder / _WRITING, ignore_errors=True)
            self.accelerator.wait_for_everyone()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of trained weights that a checkpoint lacks. It has no frozen weight, and a tied one under one name."""
        model = cast(nn.Module, self.model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name in trained]
        super()._issue_warnings_after_load(load_result)

    def _remove_old(self, folder: Path) -> None:
        """Remove all but the best and the newest checkpoints, up to save_total_limit in all."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        ordered = [path for path in checkpoints(folder) if best is None or path != Path(best)]
        kept = limit - (len(ordered) < len(checkpoints(folder))) if limit else len(ordered)
        for path in ordered[: max(0, len(ordered) - max(1, kept))]:
            remove_folder(path)


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints of a folder, the oldest first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    numbered = ((path.name.removeprefix(prefix), path) for path in Path(folder).glob(f"{prefix}*"))
    found = [(int(step), path) for step, path in numbered if step.isdecimal() and (path / FILES).is_file()]
    return [path for _, path in sorted(found)]


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
    if is_attached(model):
        _check_belongs_to(model, attached(model).mop, newest)
    return str(newest)


@contextmanager
def lost_process_in_a_sentence(folder: str | Path) -> Iterator[None]:
    """Raise ConnectionError in place of the errors of torch.distributed that follow when another process has ended.

    Args:
        folder: The folder of the checkpoints.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        whole = checkpoints(folder)
        kept = f"{whole[-1]} is kept: resume from it" if whole else "There is no checkpoint yet: start again"
        raise ConnectionError(
            f"another process of this training ended or does not answer, so this process stopped, too. {kept}. The "
            "other process may have said why."
        ) from error


def _check_belongs_to(model: PreTrainedModel, method: Method, checkpoint: Path) -> None:
    description, _ = adapter_folder.read(checkpoint)
    if description["method"] != method.name:
        raise ValueError(f"{str(checkpoint)!r} has the method {description['method']!r}, not {method.name!r}.")
    saved, config = description["config"], json.loads(json.dumps(method.config.to_dict()))
    pairs = ((key, saved.get(key), value) for key, value in config.items())
    if other := [f"{key}: saved {before!r}, here {now!r}" for key, before, now in pairs if before != now]:
        raise ValueError(
            f"{str(checkpoint)!r} has other fields ({'; '.join(other)}). Attach the method with the saved fields."
        )
    check_same_backbone(model, description["backbone"], backbone_parameters(model), checkpoint)


def _engine(shard: str, processes: int) -> str | None:
    """Return the engine that alone can read its state of the optimizer. None if a checkpoint has the whole state."""
    return f"shard {shard!r} on {processes} processes" if shard.startswith("zero") else None


def check_step(checkpoint: StrPath, config: TrainingConfig, processes: int) -> None:
    """Raise ValueError if a resumed run would make other steps than the run that wrote a checkpoint.

    R processes that accumulate k batches take R * k batches per step, in the order of the one stream of batches.

    Args:
        checkpoint: The checkpoint.
        config: The settings of the resumed run.
        processes: Processes of the resumed run.
    """
    written = read_json(Path(checkpoint) / FILES, "Delete this folder to resume from the checkpoint before it.")
    engine, here = written.get("engine"), _engine(config.shard, processes)
    if here is not None:
        check_zero_files(Path(checkpoint))
    if engine != here:
        raise ValueError(
            f"{checkpoint} has the optimizer of {engine or 'a run without DeepSpeed'}, which cannot be resumed by "
            f"{here or f'shard {config.shard!r}'}. Set shard and the number of processes back."
        )
    wrote, accumulation = written.get("batches_per_step"), config.accumulation
    if wrote is None:  # written by an earlier version
        started = len(list(Path(checkpoint).glob("rng_state*.pth")))  # one file per process
        if started != processes:
            raise ValueError(
                f"{checkpoint} was written by {started} process(es) and cannot be resumed by {processes}: they would "
                f"take other batches. Start {started}."
            )
    elif wrote != accumulation * processes:
        whole, rest = divmod(wrote, processes)
        cure = f"Start a number of processes that divides {wrote}" if rest else f"Set accumulation to {whole}"
        raise ValueError(
            f"{checkpoint} was written by a run that takes {wrote} batches per step and cannot be resumed with "
            f"{accumulation * processes}: {processes} process(es) that accumulate {accumulation}. {cure}."
        )


def _seal(checkpoint: Path, notes: Mapping[str, Any]) -> None:
    """Wait until all files are on the disk, and write the list of their checksums."""
    flush_tree(checkpoint)
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    sums = {str(path.relative_to(checkpoint)): checksum(path) for path in files}
    replace_file(checkpoint / FILES, (json.dumps({**notes, "files": sums}, indent=2) + "\n").encode())


def _check_files(checkpoint: Path) -> None:
    cure = "Delete this folder to resume from the checkpoint before it."
    listed = read_json(checkpoint / FILES, cure)
    with damage_in_a_sentence(checkpoint / FILES, cure):
        sums = dict(listed["files"])
        check_type("batches_per_step", listed.get("batches_per_step"), int | None)
        check_type("engine", listed.get("engine"), str | None)
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in sums):
            raise ValueError("it names files outside of the checkpoint")
    for name, expected in sums.items():
        if not (checkpoint / name).is_file():
            raise ValueError(f"{str(checkpoint)!r} is damaged: {name} is missing. {cure}")
        if checksum(checkpoint / name) != expected:
            raise ValueError(f"{str(checkpoint)!r} is damaged: {name} has changed since it was saved. {cure}")
