"""Layers of mop_kernels inside a transformers model whose checkpoint lacks them, or a part of them.

Memory is poisoned (conftest.py): a parameter that nothing initialises is NaN.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mop_kernels import MOPFeedForward, PHMLinear

BANK = {"num_layers": 2, "num_experts": 3, "d_in": 32, "d_mid": 32, "d_out": 32, "terms_down": 4, "terms_up": 4}
LAYERS = {
    "phm": lambda: PHMLinear(64, 96),
    "lowrank": lambda: PHMLinear(64, 96, rank=2, local_rank=3, bias=False),
    "compacter": lambda: PHMLinear(64, 96, terms=16, rank=2, init="compacter"),
    "bank": lambda: MOPFeedForward(**BANK),
    "bank_full": lambda: MOPFeedForward(**BANK, rule="full"),
    "bank_zero_up": lambda: MOPFeedForward(**BANK, init="zero_up", bias=None),
}


class Config(PretrainedConfig):
    model_type = "model_of_missing_layers"

    def __init__(self, layers=(), **kwargs):
        super().__init__(**kwargs)
        self.layers = list(layers)


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.dense = nn.Linear(8, 8)
        self.added = nn.ModuleDict({name: LAYERS[name]() for name in config.layers})
        self.finish()
        self.post_init()

    def finish(self):
        pass

    def forward(self, x):
        return self.dense(x)


def saved(folder, layers=(), without=()):
    """Save a model with these layers, with other numbers than freshly drawn layers have, but without some tensors."""
    model = Model(Config(layers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.1)
    kept = {name: value.clone() for name, value in model.state_dict().items() if name not in without}
    model.save_pretrained(folder, state_dict=dict(kept))
    return kept


def load(folder, kind=Model, layers=tuple(LAYERS), **options):
    torch.manual_seed(3)
    return kind.from_pretrained(folder, config=Config(layers), **options)


def mean_square(tensor):
    return tensor.double().square().mean().item()


def assert_drawn(model):
    """Assert that every layer has the variance that its docstring promises."""
    added, near = model.added, lambda value: pytest.approx(value, rel=0.3)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert mean_square(added["phm"].weight_matrix()) == near(1 / (3 * 64))
    assert mean_square(added["lowrank"].weight_matrix()) == near(1 / (3 * 64))
    assert mean_square(added["phm"].bias) == near(1 / (3 * 64))
    assert mean_square(added["compacter"].rule_in) == near(0.01**2)
    assert not added["compacter"].bias.any()
    for name in ("bank", "bank_full"):
        for which in ("down", 0, 1):
            pairs = [added[name].weight_matrix(layer, expert, which) for layer in range(2) for expert in range(3)]
            assert mean_square(torch.stack(pairs)) == near(2 / 64)
        assert not added[name].down.bias.any()
    assert mean_square(added["bank_zero_up"].down.rule_in) == near(1e-8)
    assert not added["bank_zero_up"].ups[0].local.any()


@pytest.mark.parametrize(
    "options", [{}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}, {"dtype": torch.bfloat16}], ids=str
)
def test_missing_layers_are_drawn(options, tmp_path):
    dense = saved(tmp_path)["dense.weight"]
    model = load(tmp_path, **options)
    assert torch.equal(model.dense.weight, dense.to(model.dtype))
    assert_drawn(model)


def test_in_inference_mode(tmp_path):
    saved(tmp_path)
    with torch.inference_mode():
        assert_drawn(load(tmp_path))


def test_two_layers_are_drawn_independently_and_a_seed_repeats_them(tmp_path):
    saved(tmp_path)
    model, again = load(tmp_path), load(tmp_path)
    assert not torch.equal(model.added["bank"].down.local[0, 0], model.added["bank"].down.local[0, 1])
    assert torch.equal(model.added["phm"].local, again.added["phm"].local)


def test_loaded_layers_are_untouched(tmp_path):
    kept = saved(tmp_path, LAYERS)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    drawn = torch.random.get_rng_state()
    model = load(tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn), "nothing is drawn"
    torch.random.set_rng_state(state)


PARTS = [
    ("phm", "rule"),
    ("phm", "local"),
    ("phm", "bias"),
    ("lowrank", "rule_in"),
    ("lowrank", "local_right"),
    ("lowrank", "rule_out,local_left"),
    ("bank", "down.rule_out"),
    ("bank", "ups.1.local"),
    ("bank", "ups.0.rule_in,ups.0.bias"),
]


class Explicit(Model):
    """A model that initialises its layers in its own `_init_weights`."""

    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "reset_parameters") and module.__module__.startswith("mop_kernels"):
            module.reset_parameters()


@pytest.mark.parametrize("kind", [Model, Explicit])
@pytest.mark.parametrize(("layer", "names"), PARTS)
def test_a_partly_loaded_layer_keeps_what_was_loaded(layer, names, kind, tmp_path):
    missing = [f"added.{layer}.{name}" for name in names.split(",")]
    kept = saved(tmp_path, LAYERS, missing)
    model, info = load(tmp_path, kind, output_loading_info=True)
    assert info["missing_keys"] == set(missing)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in kept.items())
    fresh = Model(Config(LAYERS))
    for name in missing:
        drawn = model.get_parameter(name)
        assert drawn.isfinite().all()
        assert mean_square(drawn) == pytest.approx(mean_square(fresh.get_parameter(name)), rel=0.6, abs=1e-12)


def test_explicit_initialisation(tmp_path):
    saved(tmp_path)
    assert_drawn(load(tmp_path, Explicit))


def test_mismatched_sizes_are_drawn(tmp_path):
    kept = saved(tmp_path, ["phm"])

    class Wider(Model):
        def finish(self):
            self.added["phm"] = PHMLinear(64, 128)

    model = Wider.from_pretrained(tmp_path, config=Config(["phm"]), ignore_mismatched_sizes=True)
    phm, fresh = model.added["phm"], PHMLinear(64, 128)
    assert torch.equal(phm.rule, kept["added.phm.rule"])
    assert mean_square(phm.local) == pytest.approx(mean_square(fresh.local), rel=1e-4)
    assert mean_square(phm.bias) == pytest.approx(1 / (3 * 64), rel=0.3)


def test_values_that_init_weights_writes_are_kept(tmp_path):
    """Keep these values, and draw the rest of the layer."""

    class Own(Model):
        def _init_weights(self, module):
            super()._init_weights(module)
            if isinstance(module, PHMLinear):
                nn.init.constant_(module.local if module.local_rank is None else module.local_left, 0.5)

    saved(tmp_path)
    model = load(tmp_path, Own)
    assert (model.added["phm"].local == 0.5).all()
    assert (model.added["lowrank"].local_left == 0.5).all()
    assert mean_square(model.added["phm"].rule) == pytest.approx(mean_square(PHMLinear(64, 96).rule), rel=1e-4)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_values_that_a_model_sets_itself_are_kept():
    """Keep what a constructor has set: without meta there is no empty memory."""

    class Own(Model):
        def finish(self):
            phm = self.added["phm"]
            phm.rule = nn.Parameter(torch.eye(4).repeat(4, 1, 1))
            self.added["copy"] = copy.deepcopy(phm)

    model = Own(Config(["phm"]))
    assert torch.equal(model.added["phm"].rule, torch.eye(4).repeat(4, 1, 1))
    assert torch.equal(model.added["copy"].local, model.added["phm"].local)


def test_from_meta_by_hand():
    with torch.device("meta"):
        model = Model(Config(LAYERS))
    model.to_empty(device="cpu").init_weights()
    assert_drawn(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if "added" in name}
    model.init_weights()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())


def test_a_loaded_layer_can_be_drawn_anew(tmp_path):
    kept = saved(tmp_path, LAYERS)
    phm = load(tmp_path).added["phm"]
    phm.reset_parameters()
    assert all(not torch.equal(value, kept[f"added.phm.{name}"]) for name, value in phm.state_dict().items())
    assert mean_square(phm.weight_matrix()) == pytest.approx(1 / (3 * 64), rel=0.3)
