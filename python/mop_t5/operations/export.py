"""Export of a trained prefix method: its keys and values in an adapter folder, without the method."""

import os
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import SUBMODULE, attached
from mop_t5.methods.fixed_prefix import FixedPrefix, FixedPrefixConfig
from mop_t5.storage import adapter_folder


class Exported(NamedTuple):
    """Sizes of the exported and of the attached method."""

    numbers: int  # in the folder: keys, values, and LayerNorms of the backbone that the method trained
    parameters: int  # that the method has in their place


def export(model: PreTrainedModel, folder: str | os.PathLike) -> Exported:
    """Write the prefixes of all scenarios that the attached method generates, for mop_t5.load to read.

    mop_t5.load attaches the folder as the method "fixed_prefix": the same keys and values, without the network that
    made them and the kernels it runs on. The attached method stays as it is.

    Raises:
        RuntimeError: No method is attached.
        ValueError: The method adds something else than prefixes.
        OSError: As mop_t5.save raises.
    """
    t5 = attached(model)
    method, was_training = t5.mop, t5.mop.training
    try:
        with torch.no_grad():
            additions = method.eval().additions()
    finally:
        method.train(was_training)
    others = [value for value in (additions.prompt, additions.experts, additions.loss) if value is not None]
    if not additions.prefixes or additions.adapters or others:
        raise ValueError(f"{method.name!r} adds something else than prefixes to the backbone. Use mop_t5.save.")
    trained = {name: p for name, p in t5.named_parameters() if method.trains_backbone(name)}
    rows = {a: [len(keys) for keys, _ in pairs] for a, pairs in additions.prefixes.items()}
    keys, _ = next(iter(additions.prefixes.values()))[0]
    config = FixedPrefixConfig(method.scenarios, keys.shape[-2], rows, bool(trained))
    fixed = FixedPrefix(config, method.shape, device=keys.device, dtype=keys.dtype)
    for attention, pairs in additions.prefixes.items():
        for pair, (keys, values) in zip(fixed.prefixes[attention], pairs, strict=True):
            pair.keys.copy_(keys)
            pair.values.copy_(values)
    tensors = {f"{SUBMODULE}.{name}": tensor for name, tensor in fixed.state_dict().items()} | trained
    adapter_folder.write(folder, t5.description_of(fixed), tensors)
    parameters = [*method.parameters(), *trained.values()]
    return Exported(sum(t.numel() for t in tensors.values()), sum(p.numel() for p in parameters))
