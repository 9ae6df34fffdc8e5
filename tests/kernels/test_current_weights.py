"""PHMLinear computes with its current parameters, however they are written."""

import threading

import pytest
import torch
from torch import nn

from mop_kernels import PHMLinear
from mop_kernels.truth import kron_linear

X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


def evaluated(layer: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


def right(layer: PHMLinear) -> torch.Tensor:
    """The output by W in float64, from the memory of the parameters."""
    p = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    rule = p["rule"] if layer.rank is None else p["rule_in"] @ p["rule_out"]
    local = p["local"] if layer.local_rank is None else p["local_left"] @ p["local_right"]
    return kron_linear(X.double(), rule, local, p.get("bias")).float()


def fused(optimiser):
    def step(layer):
        layer(X).square().sum().backward()
        optimiser(layer.parameters(), lr=0.1, fused=True).step()

    return step


def write_data(layer):
    """As torch_ema and diffusers' EMAModel copy their shadow parameters."""
    for p in layer.parameters():
        p.data.copy_(torch.randn_like(p))


def write_in_another_thread(layer):
    def write():
        with torch.no_grad():
            layer.local.mul_(2)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()


def write_through_numpy(layer):
    """What another process that trains shared memory does: nothing in this one is told."""
    layer.local.detach().numpy()[...] *= 3


WRITES = {
    "fused SGD": fused(torch.optim.SGD),
    "fused Adam": fused(torch.optim.Adam),
    "fused AdamW": fused(torch.optim.AdamW),
    "fused Adagrad": fused(torch.optim.Adagrad),
    ".data": write_data,
    "another thread": write_in_another_thread,
    "shared memory": write_through_numpy,
    "new data": lambda layer: setattr(layer.local, "data", torch.randn_like(layer.local)),
    "new parameter": lambda layer: setattr(layer, "rule", nn.Parameter(torch.randn_like(layer.rule))),
    "load_state_dict": lambda layer: layer.load_state_dict(PHMLinear(24, 36).state_dict()),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(PHMLinear(24, 36).state_dict(), assign=True),
    "in place": lambda layer: layer.rule.detach().mul_(2),
    "averaged": lambda layer: layer.load_state_dict(torch.optim.swa_utils.AveragedModel(layer).module.state_dict()),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_outputs_follow_the_parameters(write, training):
    layer = PHMLinear(24, 36).train(training)
    before = evaluated(layer)
    WRITES[write](layer)
    after = evaluated(layer)
    torch.testing.assert_close(after, right(layer), rtol=1e-4, atol=1e-4)
    assert write == "averaged" or not torch.allclose(after, before)


def test_an_averaged_model_follows_its_average():
    layer = PHMLinear(24, 36)
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.eval()
    for _ in range(2):
        evaluated(average)
        write_data(layer)
        average.update_parameters(layer)
    torch.testing.assert_close(evaluated(average), right(average.module), rtol=1e-4, atol=1e-4)
