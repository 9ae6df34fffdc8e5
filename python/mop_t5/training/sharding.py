"""Share the weights of a backbone among the processes of a training, by FSDP2 of torch.

Every block of the T5 is a group whose weights are gathered for its forward and its backward. The root is one more
group: embeddings, head and last norms. Encoder and decoder cannot be groups, because the tied embedding has four
owners. A method stays whole on every process, and DistributedDataParallel averages its gradients. So its optimizer,
its hooks, its checkpoints and `mop_t5.save` are those of a model that is not sharded. Where the backbone's own weights
are trained, their gradients and the state of the optimizer are sharded with them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.attached_model import is_attached
from mop_t5.operations.run_folder import processes
from mop_t5.training.config import TrainingConfig
from mop_t5.training.zero import check_zero, is_of_zero, whole

# optimizers of torch that change every value by its own gradient, so that a shard is stepped as the whole would be
_OPTIMIZERS_OF_SHARDS = ("sgd", "rmsprop", "adagrad")


def check_shard(model: PreTrainedModel, config: TrainingConfig) -> None:
    """Check that the weights of a model can be shared as `config.shard` says.

    Raises:
        ImportError: deepspeed is needed and not installed.
        RuntimeError: The processes were not started by torchrun or `accelerate launch`.
        ValueError: A parameter is quantised or has no dimension, the model lies on several devices, the trained
            parameters have several dtypes, the optimizer cannot step shards, or the method does not go together with
            DeepSpeed.
    """
    if config.shard == "no":
        return
    processes()  # connects them
    if not torch.distributed.is_initialized():
        raise RuntimeError(
            f"shard is {config.shard!r}, and a single process has nobody to share the weights with. Start the training "
            "with torchrun --nproc_per_node N, or set shard to 'no'."
        )
    kept = _whole_parameters(model)
    sharded = {name: parameter for name, parameter in model.named_parameters() if parameter not in kept}
    _check_parameters(model, sharded)
    if config.shard != "fsdp" or any(parameter.requires_grad for parameter in sharded.values()):
        _check_optimizer(config)
    if config.shard != "fsdp":
        check_zero(model, config)


def shard(model: PreTrainedModel) -> None:
    """Shard the backbone of a model over all processes, and move the model to the device of this process.

    Every process must call this function, with the same model. It cannot be undone. Attach, detach, load and add
    scenarios before.

    Args:
        model: The T5, with or without a method. A method stays whole on every process, with the parameters of the
            backbone that it trains. The method `fine_tuning` has no parameters of its own: all weights are sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    team, kept = processes(), _whole_parameters(model)
    for parameter in kept:
        parameter.data = parameter.data.to(team.device)
    mesh = init_device_mesh(team.device.type, (team.num_processes,))
    t5 = cast(T5, model)
    for module in (*t5.encoder.block, *t5.decoder.block, model):
        fully_shard(module, mesh=mesh, ignored_params=kept)
    # fully_shard also marks the model, so that generate of transformers takes equally many steps on all processes
    register_fsdp_forward_method(model, "generate")
    model.register_load_state_dict_pre_hook(_distribute)


def _check_parameters(model: PreTrainedModel, sharded: Mapping[str, nn.Parameter]) -> None:
    """Raise ValueError for parameters that an engine would shard wrongly, or with an error later."""
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        raise ValueError(
            f"model lies on {len(devices)} devices ({', '.join(sorted(devices))}) by its device_map, so it cannot be "
            "sharded. Load it without device_map, or set shard to 'no'."
        )
    for name, parameter in sharded.items():
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise ValueError(
                f"{name} of the backbone is quantised ({type(parameter).__name__} of {parameter.dtype}), and only "
                "weights in floating point can be sharded. Load the backbone in bfloat16, or set shard to 'no'."
            )
        if parameter.dim() == 0:
            raise ValueError(f"{name} has no dimension, so it cannot be sharded. Give it the shape (1,).")
    dtypes = {str(parameter.dtype) for parameter in sharded.values() if parameter.requires_grad}
    if len(dtypes) > 1:
        raise ValueError(
            f"the trained weights of the backbone have the dtypes {', '.join(sorted(dtypes))}, and sharded weights "
            "must train in one dtype. Load the backbone with dtype float32 or bfloat16."
        )


def _check_optimizer(config: TrainingConfig) -> None:
    """Raise ValueError for an optimizer that cannot step shards, or steps them otherwise than whole weights.

    Adafactor reads means over whole rows and columns, 8-bit states have scales per block of values, and the kernels of
    bitsandbytes take no DTensor.
    """
    optimizer = config.trainer.get("optim")
    if optimizer is not None and optimizer not in _OPTIMIZERS_OF_SHARDS:
        raise ValueError(
            f"trainer.optim must be one of {', '.join(_OPTIMIZERS_OF_SHARDS)} where trained weights are sharded (shard "
            f"{config.shard!r}); got {str(getattr(optimizer, 'value', optimizer))!r}, which needs whole weights. Leave "
            "it out for AdamW, or set shard to 'no'."
        )


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` or fully_shard of torch sharded the model."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def trains_shards(model: PreTrainedModel) -> bool:
    """Return whether parameters that train are sharded."""
    return is_sharded(model) and not _whole_parameters(model)


def _distribute(model: nn.Module, tensors: dict[str, Any], *_: object) -> None:
    """Replace whole tensors, which are to be loaded into a sharded model, by their shards."""
    own = model.state_dict(keep_vars=True)
    tensors.update({name: like(tensor, own[name]) for name, tensor in tensors.items() if name in own})


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return a tensor that every process has whole, sharded as `target` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor) or isinstance(tensor, DTensor) or tensor.shape != target.shape:
        return tensor
    mesh = target.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, target.placements, src_data_rank=None)


def _whole_parameters(model: PreTrainedModel) -> set[nn.Parameter]:
    """Return the parameters that stay whole on every process: all that train, if the method has its own parameters."""
    if not is_attached(model) or next(model.mop.parameters(), None) is None:
        return set()
    return {*model.mop.parameters(), *(p for p in model.parameters() if p.requires_grad)}


def data_parallel(model: PreTrainedModel, find_unused: bool) -> nn.Module:
    """Return a sharded model in a wrapper that averages the gradients of the parameters that are whole.

    Args:
        model: The result of `shard`.
        find_unused: A step may give no gradient to some of these parameters.

    Returns:
        The model itself, if all its parameters are sharded.
    """
    from torch.nn.parallel import DistributedDataParallel

    kept = _whole_parameters(model)
    if not kept:
        return model
    sharded = [name for name, p in model.named_parameters(remove_duplicate=False) if p not in kept]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)
    return DistributedDataParallel(model, find_unused_parameters=find_unused)


def must_be_gathered(model: PreTrainedModel) -> bool:
    """Return whether what a training saves of this model is sharded."""
    return trains_shards(model) or any(is_of_zero(p) for p in model.parameters() if p.requires_grad)


def gathered_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a sharded model by name, for `model.save_pretrained(folder, state_dict=weights)`.

    Every process must call this function. The first process gets whole weights in the host's memory, and the others
    get an empty result. Where a method is attached, the frozen weights of its backbone may be left out.
    """
    tensors = model.state_dict(keep_vars=True)
    if is_attached(model) and model.has_description:
        trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("mop.") or name in trained}
    return gathered(tensors)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name, with whole tensors in the host's memory in place of shards. Tied weights stay tied.

    Every process must call this function, with the same names. All but the first process get an empty result.
    """
    from torch.distributed.tensor import DTensor

    first = processes().is_main_process
    known: dict[int, Tensor] = {}
    for key, tensor in {id(t): t for t in tensors.values() if isinstance(t, DTensor) or is_of_zero(t)}.items():
        values = cast(DTensor, tensor.detach()).full_tensor() if isinstance(tensor, DTensor) else whole(tensor)
        if first:
            known[key] = values.cpu()
    return {name: known.get(id(tensor), tensor) for name, tensor in tensors.items()} if first else {}
