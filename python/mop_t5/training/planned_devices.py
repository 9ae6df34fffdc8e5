"""The planned memory of one device among several: what they share, what each has whole, and what sharing needs."""

from collections.abc import Iterable, Mapping

from torch import Tensor
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import attached, is_attached
from mop_t5.training.memory_ledger import GRADIENTS

GATHERED, BUFFERS = "gathered weights", "buffers of DeepSpeed"
# defaults of DeepSpeed 0.19, in numbers: reduce_bucket_size; stage3_max_live_parameters and stage3_prefetch_bucket_size
_BUCKET = 500_000_000
_LIVE = 1_000_000_000 + 50_000_000


def among_devices(parts: Mapping[str, int], model: PreTrainedModel, shard: str, count: int) -> dict[str, int]:
    """Return the parts per device of a training on several devices.

    Args:
        parts: The parts on a device alone: "weights", "method", "gradients", "optimizer" and others.
        model: The model, with or without a method.
        shard: "no", "fsdp", "zero2" or "zero3".
        count: The number of devices.
    """
    trained = bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    if shard == "no":  # DistributedDataParallel averages gradients in buckets of its own
        return {**parts, GRADIENTS: parts[GRADIENTS] + trained}
    if shard == "fsdp":
        return _with_fsdp(parts, model, trained, count)
    return _with_zero(parts, model, trained, count, shares_weights=shard == "zero3")


def _with_fsdp(parts: Mapping[str, int], model: PreTrainedModel, trained: int, count: int) -> dict[str, int]:
    """Return the parts where the blocks and the root are groups of FSDP2, and a method is whole on every device."""
    method = set(attached(model).mop.parameters()) if is_attached(model) else set()
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad} if method else set()
    stacks = (model.get_encoder(), model.get_decoder())
    blocks = [list(block.parameters()) for stack in stacks for block in stack.block]
    inside = {parameter for block in blocks for parameter in block}
    root = bytes_of(p for p in model.parameters() if p not in inside | method | whole)
    of_blocks = [bytes_of(p for p in block if p not in whole) for block in blocks]
    shards = root + sum(of_blocks)
    # a block computes, the next block is gathered, and lies twice: in the buffer of the transfer, and as its weights
    gathered = root + 3 * max(of_blocks)
    made = {**parts, "weights": parts["weights"] - shards + _share(shards, count), GATHERED: gathered}
    if method:
        return {**made, GRADIENTS: parts[GRADIENTS] + trained}
    # whole gradients exist for the groups that are at work
    gradients = _share(parts[GRADIENTS], count) + min(parts[GRADIENTS], gathered)
    return {**made, GRADIENTS: gradients, "optimizer": _share(parts["optimizer"], count)}


def _with_zero(
    parts: Mapping[str, int], model: PreTrainedModel, trained: int, count: int, shares_weights: bool
) -> dict[str, int]:
    """Return the parts with ZeRO of DeepSpeed, by its own defaults."""
    width = next(model.get_input_embeddings().parameters()).element_size()
    numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # the optimizer steps on a copy in float32; ZeRO-3 needs none where the weights are in float32
    copy = 0 if shares_weights and width == 4 else 4 * numbers
    made = {**parts, GRADIENTS: _share(trained, count), "optimizer": _share(parts["optimizer"] + copy, count)}
    if shares_weights:
        every = sum(parameter.numel() for parameter in model.parameters())
        made["weights"] = _share(parts["weights"], count)
        made["method"] += _share(parts["method"], count)  # it stays whole beside its share, see zero.adapt_engine
        made[GATHERED] = width * min(every, _LIVE)
    return {**made, BUFFERS: width * _BUCKET}


def _share(number: int, count: int) -> int:
    return -(-number // count)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors together."""
    return sum(tensor.nbytes for tensor in tensors)
