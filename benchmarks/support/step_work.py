"""Works of the operations of a frozen T5's training step, all works that are compiled ahead of time, and `run`.

The works of a step have no plain form on a GPU beside them yet, so nothing times them (`work.WORK` has the timed ones).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.support.work import FORWARD, WORK, Work, listed
from mop_kernels.testing import AttentionShape
from mop_kernels.triton_kernels import IMPLEMENTATIONS

STEP_WORK = [
    Work("prefix_attention", "T5-small encoder", AttentionShape(8, 8, 256, 256, 64, 40, 5, False)),
    Work("prefix_attention", "T5-small decoder", AttentionShape(8, 8, 64, 64, 64, 40, 5, True)),
    Work("prefix_attention", "T5-11B encoder", AttentionShape(2, 128, 512, 512, 128, 40, 5, False)),
    Work("prefix_attention", "T5-small without prefixes", AttentionShape(8, 8, 256, 256, 64, 0, 0, False)),
    Work("rms_norm", "2048 rows of 512", (2048, 512)),
    Work("rms_norm", "1024 rows of 4096", (1024, 4096)),
    Work("dropout_add", "2048 rows of 512", (2048, 512)),
    Work("relu_dropout", "2048 rows of 2048", (2048, 2048)),
    Work("gated_gelu_dropout", "2048 rows of 1024", (2048, 1024)),
]
LAUNCHED = [*WORK, *STEP_WORK]


def run(work: Work, tensors: Sequence[Tensor], direction: str, grads: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Call Triton's functions of an operation."""
    outputs = listed(IMPLEMENTATIONS[work.op](*work.forward_arguments(tensors)))
    if direction == FORWARD:
        return outputs
    grads = grads or [torch.ones_like(y) for y in outputs]
    return IMPLEMENTATIONS[f"{work.op}_backward"](*work.backward_arguments(tensors, grads))
