"""Compacter layers of adapters that compute by their factors. `make test-adapters` runs them beside transformers 4."""

import copy

import pytest
import torch
from torch import nn

import mop_kernels as mk

pytest.importorskip("adapters")
from accelerated import assert_as_the_library, kernels_called
from adapters import CompacterConfig, CompacterPlusPlusConfig, T5AdapterModel
from adapters.context import ForwardContext
from adapters.methods.modeling import PHMLayer
from transformers import T5Config

CASES = {
    "compacter": {},
    "own_rules": {"shared_phm_rule": False},
    "rank_one_rules": {"factorized_phm_rule": True},
    "own_rank_one_rules": {"factorized_phm_rule": True, "shared_phm_rule": False},
    "whole": {"factorized_phm_W": False},
    "shared_W": {"shared_W_phm": True},
    "rank_2": {"phm_rank": 2, "phm_dim": 2},
    "without_bias": {"phm_bias": False},
    "fixed_rules": {"learn_phm": False},
}
SIZES = {"vocab_size": 30, "d_model": 32, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}


def t5(config):
    torch.manual_seed(0)
    model = T5AdapterModel(T5Config(**SIZES, feed_forward_proj="gated-gelu"))
    model.add_adapter("task", config=config)
    model.train_adapter("task")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5)
    return model


def rows(dtype=torch.float32):
    return torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def states(model):
    ids = torch.zeros(2, 1, dtype=torch.int64)
    return model(inputs_embeds=rows(), decoder_input_ids=ids).last_hidden_state


class OneAdapter(nn.Module):
    """The first down and up maps of a model, with the parameters that all its maps share."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        down, up = [module for module in self.model.modules() if isinstance(module, PHMLayer)][:2]
        with ForwardContext(None) as context:
            context.shared_parameters = self.model.transformer.shared_parameters
            return up(torch.tanh(down(x)))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_a_step(kind, options):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    autocast = torch.bfloat16 if kind == "autocast" else None
    adapter = OneAdapter(t5(CompacterConfig(**{"reduction_factor": 4, **options}))).to(dtype)
    assert_as_the_library(adapter, rows(dtype), calls=2, autocast=autocast)


def test_gradients_of_a_whole_model():
    """Shared rules get the gradients of all layers."""
    models = [t5(CompacterConfig(reduction_factor=4)) for _ in range(2)]
    assert len(mk.accelerate(models[1]).accelerated) == 8
    for model in models:
        states(model).square().mean().backward()
    trained = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in models]
    assert any("shared_parameters" in name for name in trained[0])
    for name, gradient in trained[0].items():
        torch.testing.assert_close(trained[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_the_library_saves_loads_and_deletes(tmp_path):
    model = t5(CompacterPlusPlusConfig(reduction_factor=4))
    expected = states(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = mk.accelerate(model)
    assert len(report.accelerated) == 4
    assert not report.left
    torch.testing.assert_close(states(model), expected)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model.save_adapter(str(tmp_path), "task")
    again = t5(CompacterPlusPlusConfig(reduction_factor=4))
    again.delete_adapter("task")
    again.load_adapter(str(tmp_path), set_active=True)
    torch.testing.assert_close(states(again), expected)
    copied = copy.deepcopy(model)
    assert kernels_called(lambda: states(copied)) == 4
    assert mk.restore(model) == report.accelerated
    assert torch.equal(states(model), expected)
    copied.delete_adapter("task")
    assert mk.accelerate(copied).accelerated == ()
