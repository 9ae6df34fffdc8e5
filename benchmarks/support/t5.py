"""The frozen T5-base of bench_training_step, bench_decode, bench_methods and bench_task_moe."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SCENARIOS = ["taxi", "ticket", "hotel", "food", "film"]
# sizes of a run without --benchmark
TINY = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "vocab_size": 64}
SMALL_MOP = {"prefix_length": 4, "d_mid": 16, "terms_down": 4, "terms_up": 4}

Batch = tuple[dict[str, Tensor], Tensor]


def training_step(model: Any, batch: Batch, learning_rate: float) -> Callable[[], tuple[Tensor, list[Tensor | None]]]:
    """Return a function that makes one step: forward, backward, AdamW.

    A first step checks that the loss is finite, and that exactly the trainable parameters get gradients. The returned
    function returns the loss and the gradients of all parameters.

    Args:
        model: The backbone with a method, in training mode.
        batch: The arguments of a call, and the scenario ids.
        learning_rate: Learning rate of AdamW.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=learning_rate)
    inputs, scenario_ids = batch

    def step() -> tuple[Tensor, list[Tensor | None]]:
        loss = model(**inputs, scenario_ids=scenario_ids).loss
        loss.backward()
        gradients = [p.grad for p in parameters]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), gradients

    loss, gradients = step()
    assert loss.isfinite()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert (gradient is not None) == parameter.requires_grad
        assert gradient is None or gradient.isfinite().all()
    return step


def saved_megabytes(step: Callable[[], object], model: torch.nn.Module) -> float:
    """Return the MB that autograd keeps for backward in one step, each storage once, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return round(sum(s.nbytes() for address, s in storages.items() if address not in parameters) / 1e6, 1)
