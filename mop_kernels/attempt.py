"""ATTEMPT's instance prompts as a public operation: validate, choose the backend, differentiate."""

import math

import torch
from torch import Tensor

from . import backends
from .autograd import operation
from .rules import Call
from .sharding import is_distributed, on_local_parts
from .validation import check_dims, check_equal, check_ids, same_kind


def attempt_mix(
    x: Tensor,
    mask: Tensor | None,
    source_prompts: Tensor,
    target_prompts: Tensor,
    task_ids: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    temperature: float,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Put ATTEMPT's prompt of each example in front of its embeddings (ATTEMPT, section 3).

        h = LayerNorm(SiLU(max(x) w_down) w_up)     attention = softmax_j(max(P_j) . h / temperature)
        prefixed = [P_target + sum_j attention_j P_j ; x]

    max(x) is taken per column, over the positions that the mask leaves. max(P_j) is taken per column, over the m rows.
    Of equal numbers the first is the largest, and its position alone gets the gradient. NaN is larger than all numbers.
    Where the mask leaves no position, max(x) is 0 and has no gradient. The LayerNorm has eps 1e-5. Sums are in float32
    or better. Differentiable any number of times in all floating-point tensors, through both results. A second
    derivative in all of them takes about 8 times as long as the forward pass.

    Args:
        x: Embeddings (batch, length, d).
        mask: (batch, length), bool or integers, nonzero where x counts. None: all of it, as in the released code.
        source_prompts: P_j (sources, m, d).
        target_prompts: (tasks, m, d).
        task_ids: int64 (batch,). They are read on the device. On a CPU they are checked.
        w_down: (d, r).
        w_up: (r, d).
        ln_weight: (d,).
        ln_bias: (d,).
        temperature: A positive number.
        backend: "reference", "cpu", "triton", or None for the automatic choice.

    Returns:
        prefixed (batch, m + length, d), and attention (batch, sources + 1), the target's own candidate last.

    Raises:
        TypeError: An argument has a wrong type, or dtypes differ.
        ValueError: A shape, a device, a task id or the temperature does not fit, or `backend` has an unknown name.
        RuntimeError: `backend` cannot run here.
    """
    if is_distributed(x, mask, source_prompts, target_prompts, task_ids, w_down, w_up, ln_weight, ln_bias):
        arguments = {
            "x": x,
            "mask": mask,
            "source_prompts": source_prompts,
            "target_prompts": target_prompts,
            "task_ids": task_ids,
            "w_down": w_down,
            "w_up": w_up,
            "ln_weight": ln_weight,
            "ln_bias": ln_bias,
        }
        options = {"temperature": temperature, "backend": backend}
        return on_local_parts(attempt_mix, arguments, options, by_row=("x", "mask", "task_ids"), row_dims=(0,))
    x, source, target, w_down, w_up, ln_weight, ln_bias = same_kind(
        {
            "x": x,
            "source_prompts": source_prompts,
            "target_prompts": target_prompts,
            "w_down": w_down,
            "w_up": w_up,
            "ln_weight": ln_weight,
            "ln_bias": ln_bias,
        }
    )
    check_dims("x", x, "(batch, length, d)", exactly=3, cure="x.unsqueeze(0)", filled=0)
    check_dims("source_prompts", source, "(sources, m, d)", exactly=3, cure="source_prompts.unsqueeze(0)")
    check_dims("target_prompts", target, "(tasks, m, d)", exactly=3, cure="target_prompts.unsqueeze(0)")
    rows, width = source.shape[1:]
    check_equal("x", x, 2, width, "d of source_prompts")
    check_equal("target_prompts", target, 1, rows, "rows of source_prompts, m")
    check_equal("target_prompts", target, 2, width, "d of source_prompts")
    check_dims("w_down", w_down, "(d, r)", exactly=2, cure="w_down.unsqueeze(1) for r = 1")
    rank = w_down.shape[1]
    for name, tensor, shape, sizes in (
        ("w_down", w_down, "(d, r)", (width, rank)),
        ("w_up", w_up, "(r, d)", (rank, width)),
        ("ln_weight", ln_weight, "(d,)", (width,)),
        ("ln_bias", ln_bias, "(d,)", (width,)),
    ):
        if tuple(tensor.shape) != sizes:
            cure = " The weight of an nn.Linear is its transpose: weight.T." if name.startswith("w_") else ""
            raise ValueError(f"{name} must have shape {shape} = {sizes}; got {tuple(tensor.shape)}.{cure}")
    mask = _check_mask(mask, x)
    task_ids = _check_task_ids(task_ids, x, target.shape[0])
    temperature = _check_temperature(temperature)
    backend = backends.resolve(backend, x.device, x.dtype, "attempt_mix")
    call = Call("attempt_mix", backend, (temperature, x.shape[1]))
    return operation(call, x, mask, source, target, task_ids, w_down, w_up, ln_weight, ln_bias)[:2]


def _check_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None; got {type(mask).__name__}.")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"mask must be a bool or integer tensor; got {mask.dtype}. Use mask != 0.")
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must have shape (batch, length) = {tuple(x.shape[:2])}, as x has; got {tuple(mask.shape)}."
        )
    return mask.to(x.device, torch.bool)


def _check_task_ids(task_ids: Tensor, x: Tensor, tasks: int) -> Tensor:
    batch = x.shape[0]
    if not isinstance(task_ids, Tensor) or task_ids.dtype != torch.int64:
        got = task_ids.dtype if isinstance(task_ids, Tensor) else type(task_ids).__name__
        raise TypeError(f"task_ids must be an int64 tensor of shape (batch,); got {got}. Use torch.tensor([0, 2]).")
    if task_ids.shape != (batch,):
        raise ValueError(
            f"task_ids must have shape (batch,) = ({batch},), one an example; got {tuple(task_ids.shape)}. "
            f"One task for all: task_ids.expand({batch})."
        )
    task_ids = task_ids.to(x.device)
    check_ids("task_ids", task_ids, tasks, ", the rows of target_prompts")
    return task_ids


def _check_temperature(temperature: float) -> float:
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        got = type(temperature).__name__
        raise TypeError(f"temperature must be a Python number; got {got}. The paper's is d * math.e.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite; got {temperature}. The paper's is d * math.e.")
    return float(temperature)
