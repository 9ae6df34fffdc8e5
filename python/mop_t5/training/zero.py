"""Share the weights, the gradients and the optimizer of a training among processes, by ZeRO of DeepSpeed.

ZeRO-2 shards gradients and optimizer, and ZeRO-3 the weights, too. DeepSpeed makes its own optimizer of the trainer's:
it steps within backward, on flat pieces of the parameters. So what changes single gradients between backward and step
cannot work, and is refused.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import is_attached
from mop_t5.files import read_text
from mop_t5.training.config import TrainingConfig

_OF_DEEPSPEED = {  # objects beside tensors in the files that DeepSpeed writes
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def check_zero(model: PreTrainedModel, config: TrainingConfig) -> None:
    """Check that DeepSpeed can train a model.

    Args:
        model: The T5, with or without a method.
        config: The settings. `shard` is "zero2" or "zero3".

    Raises:
        ImportError: deepspeed is not installed.
        ValueError: A method holds single parameters at a step, or a weight has a dtype that DeepSpeed does not take.
    """
    if find_spec("deepspeed") is None:
        raise ImportError(
            f"shard is {config.shard!r}, which needs the package deepspeed. Install it: "
            "pip install 'mop-kernels[deepspeed]'"
        )
    if (held := unfit_for_zero(model)) is not None:
        raise ValueError(f"shard must be 'fsdp' or 'no' here; got {config.shard!r}. DeepSpeed cannot {held}.")
    wanted = {torch.float32, torch.bfloat16} if config.bf16 else {torch.float32}
    for name, parameter in model.named_parameters():
        if parameter.dtype not in wanted:
            cure = "Load the backbone in float32" + ("." if config.bf16 else ", or in bfloat16 and set bf16 to true.")
            raise ValueError(f"{name} has the dtype {parameter.dtype}, which DeepSpeed does not train here. {cure}")


def unfit_for_zero(model: PreTrainedModel) -> str | None:
    """Return what a method needs at a step and DeepSpeed cannot do. None if there is nothing."""
    if not is_attached(model):
        return None
    method = model.mop
    if next(iter(method.expert_parameters()), None) is not None and len(method.scenarios) > 1:
        return "leave the experts of absent scenarios unchanged at a step"
    if method.skips_parameters or method.idle_groups(0) or method.idle_groups(1):
        return "leave parameters without a gradient unchanged at a step"
    return None


def zero_settings(config: TrainingConfig) -> dict[str, Any] | None:
    """Return the settings of DeepSpeed for `shard`. None if DeepSpeed is not asked for. Trainer fills in "auto"."""
    if not config.shard.startswith("zero"):
        return None
    return {
        "zero_optimization": {"stage": int(config.shard.removeprefix("zero"))},
        "bf16": {"enabled": config.bf16},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,  # AdamW of torch
    }


def check_zero_files(checkpoint: Path) -> None:
    """Check that DeepSpeed may read its files in a checkpoint. It unpickles them, and a pickle can run any code.

    The names of all objects in a pickle can be listed without reading it.

    Args:
        checkpoint: The checkpoint, which has other files, too.

    Raises:
        ValueError: A file is damaged, holds more than DeepSpeed writes, or lies outside of the checkpoint.
    """
    cure = "Delete this folder to resume from the checkpoint before it."
    latest = checkpoint / "latest"  # names the folder that DeepSpeed reads
    named = read_text(latest).strip() if latest.is_file() else ""
    if latest.exists() and not re.fullmatch(r"global_step\d+", named):
        raise ValueError(f"{latest} must name a folder of DeepSpeed, global_stepN; got {named[:80]!r}. {cure}")
    for path in sorted(checkpoint.rglob("*.pt")):
        try:
            strange = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _OF_DEEPSPEED
        except Exception as error:  # a damaged file raises nearly every kind of error
            raise ValueError(f"{path} is damaged ({error}). {cure}") from error
        if strange:
            raise ValueError(
                f"{path} holds {', '.join(sorted(strange))}, which DeepSpeed does not write and which may run code. "
                f"{cure}"
            )


def adapt_engine(engine: Any, model: PreTrainedModel) -> None:
    """Let a DeepSpeed engine keep a method whole, and leave the frozen backbone out of its checkpoints.

    ZeRO-3 frees the weights of a module after its forward. A method's weights are used later, in the blocks.
    """
    stays_whole = getattr(engine.optimizer, "persistent_parameters", None)  # of ZeRO-3 alone
    if stays_whole is not None and is_attached(model):
        method: list[Any] = list(model.mop.parameters())
        added = [parameter for parameter in method if not parameter.ds_persist]
        for parameter in added:
            parameter.ds_persist = True
        stays_whole.extend(added)
        if added:
            added[0].all_gather(added)
    save, load = engine.save_checkpoint, engine.load_checkpoint
    engine.save_checkpoint = lambda *args, **kwargs: save(*args, **kwargs | {"exclude_frozen_parameters": True})
    engine.load_checkpoint = lambda *args, **kwargs: load(*args, **kwargs | {"load_module_strict": False})


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter that DeepSpeed trains or shards: whole, in the host's memory, in its trained precision.

    Every process must call this function.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(parameter, "_hp_mapping") or (hasattr(parameter, "ds_id") and parameter.requires_grad):
        trained = safe_get_full_fp32_param(parameter)
        if trained is not None:
            return trained.detach().cpu().clone()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()


def is_of_zero(tensor: object) -> bool:
    """Return whether DeepSpeed has sharded a parameter or its optimizer state."""
    return isinstance(tensor, nn.Parameter) and (hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"))


def forget_zero() -> None:
    """Let transformers load the next model whole: after a training by ZeRO-3 it would shard every model it loads."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
