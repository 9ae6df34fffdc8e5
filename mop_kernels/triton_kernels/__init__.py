"""The Triton backend: one file per operation, with `forward` and `backward` of the signatures in ops.SCHEMAS.

These functions do not validate their arguments (validation.py does), differentiate, or choose a backend. `Replayed`
makes tensors contiguous, except the gradients of outputs, which may have any strides. Results are contiguous. Sums are
accumulated in float32. There are no atomics: two runs give the same bits.
"""

from collections.abc import Callable

import triton

from . import (
    attempt_mix,
    attempt_mix_backward,
    dropout_add,
    gated_gelu_dropout,
    lowrank_phm_linear,
    mop_ffn,
    mop_ffn_backward,
    phm_linear,
    phm_weight,
    prefix_attention,
    prefix_attention_backward,
    relu_dropout,
    rms_norm,
)
from .device_functions import INTERPRETED
from .replay import Replayed

if isinstance(triton.language.cdiv, triton.JITFunction) == INTERPRETED:
    raise RuntimeError(
        "TRITON_INTERPRET was changed between the import of triton and that of its kernels in mop_kernels. "
        "Set it before Python starts."
    )

_FUNCTIONS: dict[str, Callable] = {
    "phm_weight": phm_weight.forward,
    "phm_weight_backward": phm_weight.backward,
    "phm_linear": phm_linear.forward,
    "phm_linear_backward": phm_linear.backward,
    "lowrank_phm_linear": lowrank_phm_linear.forward,
    "lowrank_phm_linear_backward": lowrank_phm_linear.backward,
    "mop_ffn": mop_ffn.forward,
    "mop_ffn_backward": mop_ffn_backward.backward,
    "attempt_mix": attempt_mix.forward,
    "attempt_mix_backward": attempt_mix_backward.backward,
    "rms_norm": rms_norm.forward,
    "rms_norm_backward": rms_norm.backward,
    "dropout_add": dropout_add.forward,
    "dropout_add_backward": dropout_add.backward,
    "relu_dropout": relu_dropout.forward,
    "relu_dropout_backward": relu_dropout.backward,
    "gated_gelu_dropout": gated_gelu_dropout.forward,
    "gated_gelu_dropout_backward": gated_gelu_dropout.backward,
    "prefix_attention": prefix_attention.forward,
    "prefix_attention_backward": prefix_attention_backward.backward,
}
_ANNEALED = ("attempt_mix", "attempt_mix_backward")  # a temperature that changes in every step of a training
IMPLEMENTATIONS = {name: Replayed(function, name in _ANNEALED) for name, function in _FUNCTIONS.items()}
