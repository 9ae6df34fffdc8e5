"""LoKr modules of LyCORIS that compute by their factors."""

import copy
import logging

import pytest
import torch
from torch import nn

import mop_kernels as mk

pytest.importorskip("lycoris")
from accelerated import assert_as_the_library, kernels_called, step
from lycoris import LycorisNetwork, create_lycoris

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
CASES = {
    "full": {"full_matrix": True, "factor": 4},
    "low_rank": {"factor": 4},
    "both": {"decompose_both": True, "factor": 6, "linear_dim": 1},
    "square": {"factor": -1, "linear_dim": 1},
    "unbalanced": {"factor": 4, "unbalanced_factorization": True},
    "scalar": {"factor": 4, "use_scalar": True},
    "multiplied": {"factor": 4, "multiplier": 0.7, "rs_lora": True},
    "rank_dropout": {"factor": 4, "rank_dropout": 0.5, "rank_dropout_scale": True},
    "dropout": {"factor": 4, "dropout": 0.3},
    "module_dropout": {"factor": 4, "module_dropout": 0.5},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 36), nn.Linear(36, 12, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.fixture(autouse=True)
def targets():
    """The preset of a network is an attribute of its class."""
    kept = (LycorisNetwork.TARGET_REPLACE_MODULE, LycorisNetwork.ENABLE_CONV)
    LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv1d"]})
    yield
    LycorisNetwork.TARGET_REPLACE_MODULE, LycorisNetwork.ENABLE_CONV = kept


def lycoris_model(dtype=torch.float32, model=None, **options):
    """Return a model and its network, all of whose parameters are drawn."""
    torch.manual_seed(0)
    model = model or Net()
    options = {"linear_dim": 2, "linear_alpha": 3, "algo": "lokr", "multiplier": 1.0, **options}
    network = create_lycoris(model, **options)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3 if parameter.dim() else torch.tensor(0.8))
    return model.to(dtype), network.to(dtype)


def rows(dtype=torch.float32):
    return torch.randn(5, 3, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("bypass", [False, True], ids=["weight", "bypass"])
def test_a_step(bypass, kind, options):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    autocast = torch.bfloat16 if kind == "autocast" else None
    model, network = lycoris_model(dtype, bypass_mode=bypass, **options)
    calls = 1 if "module_dropout" in options else 2  # at this seed, one of the two layers is dropped
    assert_as_the_library(model, rows(dtype), calls=calls, autocast=autocast, root=network)


@pytest.mark.parametrize("bypass", [False, True], ids=["weight", "bypass"])
def test_scale_is_applied_once_and_twice_in_a_merge(bypass):
    """The merged model of LyCORIS computes with (alpha/rank)^2. It does so as before."""
    model, network = lycoris_model(bypass_mode=bypass, **CASES["low_rank"])
    mk.accelerate(network)
    lora, x = network.lycoris_first, rows()
    weight = torch.kron(lora.lokr_w1, lora.lokr_w2_a @ lora.lokr_w2_b)
    expected = nn.functional.linear(x, model.first.weight + 1.5 * weight, model.first.bias)  # alpha/rank = 3/2
    torch.testing.assert_close(model.first(x), expected)
    network.restore()
    network.merge_to()
    expected = nn.functional.linear(x, model.first.weight, model.first.bias)
    assert torch.equal(model.first(x), expected)
    plain, its_network = lycoris_model(bypass_mode=bypass, **CASES["low_rank"])
    its_network.restore()
    its_network.merge_to()
    assert torch.equal(model.first.weight, plain.first.weight)


def test_found_from_the_model_and_from_the_network():
    model, network = lycoris_model(**CASES["low_rank"])
    expected = model(rows())
    before = network.state_dict()
    report = mk.accelerate(model)
    assert report == (("first._lycoris_wrappers[0]", "second._lycoris_wrappers[0]"), {})
    assert mk.accelerate(network).accelerated == ("lycoris_first", "lycoris_second")
    assert kernels_called(lambda: model(rows())) == 2
    torch.testing.assert_close(model(rows()), expected)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert mk.restore(network) == ("lycoris_first", "lycoris_second")
    assert torch.equal(model(rows()), expected)


def test_weights_load_and_modules_leave():
    model, network = lycoris_model(**CASES["low_rank"])
    mk.accelerate(network)
    state = {name: t.clone() for name, t in network.state_dict().items()}
    expected = model(rows())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert not torch.allclose(model(rows()), expected)
    network.load_state_dict(state)
    torch.testing.assert_close(model(rows()), expected)
    network.set_multiplier(0.0)
    torch.testing.assert_close(model(rows()), Net.forward(copy.deepcopy(model), rows()))
    network.restore()
    assert kernels_called(lambda: model(rows())) == 0


def test_what_is_left():
    class Convolution(Net):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 6, 3)

    _, network = lycoris_model(model=Convolution(), **CASES["low_rank"])
    report = mk.accelerate(network)
    assert report.accelerated == ("lycoris_first", "lycoris_second")
    assert "conv1d" in report.left["lycoris_conv"]
    _, network = lycoris_model(dora_wd=True, **CASES["low_rank"])
    report = mk.accelerate(network)
    assert not report.accelerated
    assert all("weight_decompose" in reason for reason in report.left.values())
    assert "2 layers (lycoris_first, lycoris_second)" in str(report)


def test_a_parametrization_is_left():
    from lycoris import LokrModule

    model = Net()
    LokrModule.parametrize(model.first, "weight", lora_dim=2, alpha=3, factor=4)
    expected = model(rows())
    report = mk.accelerate(model)
    assert not report.accelerated
    assert list(report.left) == ["first.parametrizations.weight.0"]
    assert torch.equal(model(rows()), expected)


@pytest.mark.parametrize("bypass", [False, True], ids=["weight", "bypass"])
def test_compiled(bypass):
    model, network = lycoris_model(bypass_mode=bypass, **CASES["low_rank"])
    pair = nn.ModuleList([model, network])
    expected = step(model, rows(), parameters=pair)
    mk.accelerate(pair)
    torch.compiler.reset()
    found = step(torch.compile(model, fullgraph=True, backend="aot_eager"), rows(), parameters=pair)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_copies():
    pair = nn.ModuleList(lycoris_model(**CASES["low_rank"]))
    mk.accelerate(pair)
    again = copy.deepcopy(pair)
    assert torch.equal(again[0](rows()), pair[0](rows()))
    assert kernels_called(lambda: again[0](rows())) == 2
    with torch.no_grad():
        again[1].lycoris_first.lokr_w1.zero_()
    assert not torch.equal(again[0](rows()), pair[0](rows()))
    mk.restore(again)
    assert kernels_called(lambda: again[0](rows())) == 0
    assert kernels_called(lambda: pair[0](rows())) == 2
