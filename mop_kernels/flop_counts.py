"""Give the FLOPs of the package's ops to `torch.utils.flop_counter.FlopCounterMode`: two per multiply-add.

The counts are formulas of the sizes (multiply_adds.py) and the same for every backend. The counter does not look inside
an op of this package, so nothing is counted twice. The counter copies its registry when it is constructed: import
mop_kernels before that.

torch.utils.flop_counter is slow to import (torch 2.13 imports triton there). So the formulas are not registered when
mop_kernels is imported, but as soon as somebody imports torch.utils.flop_counter.
"""

import importlib.abc
import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor

from . import backends, multiply_adds, ops

_COUNTER = "torch.utils.flop_counter"


def _asked(mask: int, count: int) -> list[int]:
    """Return the first `count` bits of an op's mask, one flag per tensor."""
    return [mask >> k & 1 for k in range(count)]


def _phm_weight(rule, local):
    return multiply_adds.of_weight(rule, local)


def _phm_weight_backward(grad, rule, local, mask):
    return multiply_adds.of_weight_backward(rule, local, *_asked(mask, 2))


def _phm_linear(x, rule, local, bias=None):
    return multiply_adds.of_dense(x, rule, local)


def _phm_linear_backward(grad, x, rule, local, mask):
    return multiply_adds.of_dense_backward(x, rule, local, *_asked(mask, 3))


def _lowrank_phm_linear(x, rule_in, rule_out, local, bias=None):
    return multiply_adds.of_stages(x, rule_in, rule_out, local)


def _lowrank_phm_linear_backward(grad, x, rule_in, rule_out, local, mask):
    stages = multiply_adds.stages_of(rule_in, rule_out, local)
    return x.numel() // x.shape[-1] * multiply_adds.backward_of_stages(stages, *_asked(mask, 4))


def _mop_ffn(x, down, ups, num_maps, activation, experts=None):
    return multiply_adds.of_bank(x, down, ops.split_maps(ups, num_maps), experts)


def _mop_ffn_backward(grads, x, down, ups, num_maps, activation, experts, mask):
    asked_x, *asked = _asked(mask, 1 + len(down) + len(ups))
    asked_down, asked_ups = asked[: len(down)], asked[len(down) :]
    width = len(ups) // num_maps
    by_map = [asked_ups[k * width : (k + 1) * width] for k in range(num_maps)]
    maps = ops.split_maps(ups, num_maps)
    return multiply_adds.of_bank_backward(x, down, maps, experts, asked_x, asked_down, by_map)


def _sizes_of_prompts(batch: int, source: Tensor, w_down: Tensor) -> tuple[int, int, int, int, int]:
    return batch, *source.shape, w_down.shape[1]


def _attempt_mix(x, keep, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature):
    return multiply_adds.of_prompts(*_sizes_of_prompts(x.shape[0], source, w_down))


def _attempt_mix_backward(
    grad_prefixed,
    grad_attention,
    peak,
    position,
    source,
    target,
    task_ids,
    w_down,
    w_up,
    ln_weight,
    ln_bias,
    temperature,
    mask,
):
    *asked, ln_weight, ln_bias = _asked(mask, 7)
    sizes = _sizes_of_prompts(peak.shape[0], source, w_down)
    return multiply_adds.of_prompts_backward(*sizes, (*asked, ln_weight | ln_bias))


_MULTIPLY_ADDS = {
    "phm_weight": _phm_weight,
    "phm_weight_backward": _phm_weight_backward,
    "phm_linear": _phm_linear,
    "phm_linear_backward": _phm_linear_backward,
    "lowrank_phm_linear": _lowrank_phm_linear,
    "lowrank_phm_linear_backward": _lowrank_phm_linear_backward,
    "mop_ffn": _mop_ffn,
    "mop_ffn_backward": _mop_ffn_backward,
    "attempt_mix": _attempt_mix,
    "attempt_mix_backward": _attempt_mix_backward,
}


def _flops(name: str):
    def formula(*args, out_val=None, **kwargs) -> int:
        return 2 * _MULTIPLY_ADDS[name](*args, **kwargs)

    return formula


def _register(flop_counter: ModuleType) -> None:
    """Register the formula of every op that is defined in this process."""
    for name in ops.SCHEMAS:
        defined = [b for b in backends.NAMES if ops.is_defined(name, b)]
        packets = [getattr(torch.ops.mop_kernels, f"{name}_{backend}") for backend in defined]
        flop_counter.register_flop_formula(packets, get_raw=True)(_flops(name))


class _AfterCounterIsImported(importlib.abc.MetaPathFinder):
    """Leave the search for torch's FLOP counter to the other finders, and register the formulas after it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = None if spec is None else spec.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register(module)

            loader.exec_module = load_and_register
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _AfterCounterIsImported())
