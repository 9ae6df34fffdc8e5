"""Fused kernels for sums of Kronecker products (PHM layers).

    W = sum_i rule_i (x) local_i        y = x W        rule_i = rule_in_i @ rule_out_i  (low rank)

W is never built where that saves work: the factors are applied to the rows directly, and one call serves every
(layer, expert) pair of a mixture. step.py has the operations of a frozen T5's training step.
"""

from .acceleration import Acceleration, accelerate, restore
from .backends import available_backends, use_backend
from .conversion import phm_linear_from_compacter, replace_linears
from .explain import explain_backend
from .functional import attempt_mix, lowrank_phm_linear, mop_ffn, phm_linear, phm_weight
from .layers import MOPFeedForward, PHMLinear
from .reference import LowRankPHM
from .step import dropout_add, gated_gelu_dropout, linear_cross_entropy, prefix_attention, relu_dropout, rms_norm

__version__ = "0.2.0"

__all__ = [
    "Acceleration",
    "LowRankPHM",
    "MOPFeedForward",
    "PHMLinear",
    "accelerate",
    "attempt_mix",
    "available_backends",
    "dropout_add",
    "explain_backend",
    "gated_gelu_dropout",
    "linear_cross_entropy",
    "lowrank_phm_linear",
    "mop_ffn",
    "phm_linear",
    "phm_linear_from_compacter",
    "phm_weight",
    "prefix_attention",
    "relu_dropout",
    "replace_linears",
    "restore",
    "rms_norm",
    "use_backend",
]
