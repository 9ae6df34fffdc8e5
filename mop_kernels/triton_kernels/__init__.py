"""The Triton backend: one file per operation, with `forward` and `backward` of the signatures in ops.SCHEMAS.

These functions do not validate their arguments (validation.py does), differentiate, or choose a backend. `Replayed`
makes tensors contiguous, except the gradients of outputs, which may have any strides. Results are contiguous. Sums are
accumulated in float32. There are no atomics: two runs give the same bits.
"""

from types import ModuleType

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

_MODULES: dict[str, tuple[ModuleType, ModuleType]] = {  # with `forward`, and with `backward`
    "phm_weight": (phm_weight, phm_weight),
    "phm_linear": (phm_linear, phm_linear),
    "lowrank_phm_linear": (lowrank_phm_linear, lowrank_phm_linear),
    "mop_ffn": (mop_ffn, mop_ffn_backward),
    "attempt_mix": (attempt_mix, attempt_mix_backward),
    "rms_norm": (rms_norm, rms_norm),
    "dropout_add": (dropout_add, dropout_add),
    "relu_dropout": (relu_dropout, relu_dropout),
    "gated_gelu_dropout": (gated_gelu_dropout, gated_gelu_dropout),
    "prefix_attention": (prefix_attention, prefix_attention_backward),
}
IMPLEMENTATIONS: dict[str, Replayed] = {}
for _name, (_forward, _backward) in _MODULES.items():
    _is_annealed = _name == "attempt_mix"  # its temperature changes in every step of a training
    IMPLEMENTATIONS[_name] = Replayed(_forward.forward, _is_annealed)
    IMPLEMENTATIONS[f"{_name}_backward"] = Replayed(_backward.backward, _is_annealed)
