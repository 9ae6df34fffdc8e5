"""PyTorch's tools on the layers: exported, traced, pruned, parametrized, quantised and copied models."""

import copy
import io
import pickle

import pytest
import torch
from errors import raises
from torch import nn
from torch.export import Dim
from torch.nn.utils import parametrizations, parametrize, prune

import mop_kernels as mk
from mop_kernels import MOPFeedForward, PHMLinear, testing

LAYERS = {
    "full rule": lambda: PHMLinear(16, 8),
    "low rank": lambda: PHMLinear(16, 8, rank=1),
    "generator": lambda: MOPFeedForward(2, 3, 16, 8, 8, terms_down=2, terms_up=2, activation="gelu"),
}
X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """A layer between two dense ones: gradients must pass through it, not only reach it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(16, 16), layer, nn.Linear(8, 1)

    def forward(self, x):
        y = self.layer(torch.tanh(self.first(x)))
        return self.last(y if isinstance(y, torch.Tensor) else sum(y).sum((0, 1)))


@pytest.fixture(params=LAYERS)
def model(request) -> Model:
    return Model(LAYERS[request.param]())


def outcome(model: nn.Module, x: torch.Tensor = X) -> list[torch.Tensor]:
    """The output and the gradient of every parameter, by name."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for _, p in sorted(model.named_parameters()))]


def assert_equal_outcomes(found, expected):
    for a, e in zip(found, expected, strict=True):
        assert a.shape == e.shape
        assert testing.relative_error(a, e.double()) < 1e-4


@pytest.mark.parametrize("strict", [True, False])
def test_exported_models_compute_and_train(model, strict, backend):
    """The op in the exported graph is differentiable by itself."""
    with mk.use_backend(backend):
        program = torch.export.export(model, (X,), strict=strict, dynamic_shapes={"x": {0: Dim.AUTO}})
        found, rows = outcome(program.module()), program.module()(X.repeat(3, 1))
        assert any("mop_kernels" in str(node.target) for node in program.graph.nodes)
    assert_equal_outcomes(found, outcome(model))
    torch.testing.assert_close(rows, model(X.repeat(3, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_layers_take_any_strides(strict, backend):
    """Making a tensor contiguous is not recorded where the example was."""
    layer = PHMLinear(16, 8)
    with mk.use_backend(backend):
        program = torch.export.export(layer, (X,), strict=strict).module()
        for x in (torch.randn(16, 5).T, torch.randn(5, 32)[:, ::2], torch.randn(1, 16).expand(5, 16)):
            torch.testing.assert_close(program(x), layer(x))
            leaves = list(program.parameters())
            found = torch.autograd.grad(program(x).square().sum(), leaves)
            for a, e in zip(found, torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), strict=True):
                torch.testing.assert_close(a, e)
            with torch.no_grad():
                torch.testing.assert_close(program(x), layer(x))


def test_exporting_after_tracing():
    """A trace has tensors for sizes, which must not be remembered."""
    layer = PHMLinear(16, 8)
    torch.jit.trace(layer, X)
    torch.testing.assert_close(torch.export.export(layer, (X,), strict=True).module()(X), layer(X))


def test_exported_models_are_saved(model):
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (X,)), file)
    file.seek(0)
    assert_equal_outcomes(outcome(torch.export.load(file).module()), outcome(model))


def test_exported_models_have_second_derivatives_and_forward_mode():
    layer = PHMLinear(16, 8)
    exported = torch.export.export(layer, (X,)).module()
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(exported(x).square().sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    weight = layer.weight_matrix()
    torch.testing.assert_close(curvature, torch.ones_like(X) @ (2 * weight @ weight.mT), rtol=1e-4, atol=1e-4)
    for grad_mode in (True, False):
        with torch.set_grad_enabled(grad_mode), torch.autograd.forward_ad.dual_level():
            y = exported(torch.autograd.forward_ad.make_dual(X, torch.ones_like(X)))
            tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
            torch.testing.assert_close(tangent, torch.ones_like(X) @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_traced_models_compute_train_and_are_saved(model, training, gradients, backend):
    model.train(training)
    with mk.use_backend(backend), torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, X)
    with torch.no_grad():  # a trace must hold no weight of its own
        for p in model.parameters():
            p.mul_(1.5)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for found in (traced, torch.jit.load(file)):
        assert_equal_outcomes(outcome(found), outcome(model))


def test_dynamic_quantisation_leaves_the_layer_alone(model):
    quantised = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear})
    assert type(quantised.first) is not nn.Linear
    assert type(quantised.layer) is type(model.layer)
    for p, q in zip(model.layer.parameters(), quantised.layer.parameters(), strict=True):
        assert torch.equal(p, q)
    assert (quantised(X) - model(X)).abs().max() < 0.1 * model(X).abs().max() + 0.05


@pytest.mark.parametrize("name", ["rule", "local", "bias"])
def test_pruned_factors(name):
    layer = PHMLinear(16, 8)
    prune.l1_unstructured(layer, name, 0.5)
    assert (getattr(layer, name) == 0).float().mean() == 0.5
    for _ in range(2):
        torch.testing.assert_close(layer(X), layer.to_linear()(X), rtol=1e-4, atol=1e-4)
        layer(X).sum().backward()
        original = getattr(layer, f"{name}_orig")
        assert (original.grad[getattr(layer, name) == 0] == 0).all()
        with torch.no_grad():
            original.add_(1)
    prune.remove(layer, name)
    torch.testing.assert_close(layer(X), layer.to_linear()(X), rtol=1e-4, atol=1e-4)


class Symmetric(nn.Module):
    def forward(self, rule):
        return rule + rule.mT


def test_parametrized_factors():
    layer = PHMLinear(16, 8)
    before = layer.rule.detach().clone()
    parametrize.register_parametrization(layer, "rule", Symmetric())
    torch.testing.assert_close(layer.rule, before + before.mT)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(X), layer.to_linear()(X), rtol=1e-4, atol=1e-4)
            layer.parametrizations.rule.original.mul_(2)
            layer.parametrizations.rule.original.mul_(0.5)
    layer(X).sum().backward()
    assert layer.parametrizations.rule.original.grad is not None


def test_weight_norm_of_a_factor():
    layer = parametrizations.weight_norm(PHMLinear(16, 8), "local")
    torch.testing.assert_close(layer(X), layer.to_linear()(X), rtol=1e-4, atol=1e-4)
    layer(X).sum().backward()
    assert layer.parametrizations.local.original0.grad is not None


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [*COPIES, "torch.save"])
def test_copies_stand_alone(model, how):
    twin = saved(model) if how == "torch.save" else COPIES[how](model)
    before = [t.clone() for t in outcome(model)]
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    assert_equal_outcomes(outcome(model), before)
    twin.load_state_dict(model.state_dict())
    assert_equal_outcomes(outcome(twin), before)


def test_functional_call_and_swapped_parameters(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    called = torch.func.functional_call(model, dict(other.named_parameters()), (X,))
    torch.testing.assert_close(called, other(X))


def test_checkpointed_activations(model):
    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

    expected = outcome(model)
    model.zero_grad()
    y = checkpointed(X)
    y.square().sum().backward()
    assert_equal_outcomes([y.detach(), *(p.grad for _, p in sorted(model.named_parameters()))], expected)


def test_symbolic_trace_is_refused():
    with raises(TypeError, "x", "torch.Tensor", "Proxy"):
        torch.fx.symbolic_trace(nn.Sequential(PHMLinear(16, 8)))


def test_symbolic_trace_of_a_leaf():
    """As torch.fx documents for modules that it should not look into."""

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, PHMLinear) or super().is_leaf_module(module, name)

    plain = nn.Sequential(PHMLinear(16, 8), nn.ReLU())
    traced = torch.fx.GraphModule(plain, Tracer().trace(plain))
    torch.testing.assert_close(traced(X), plain(X))


@pytest.mark.slow
def test_aot_inductor(tmp_path):
    """The compiled package calls the op of the backend that was chosen at export."""
    layer = PHMLinear(16, 8).eval()
    with torch.no_grad():
        program = torch.export.export(layer, (X,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
        found = torch._inductor.aoti_load_package(path)(X)
    torch.testing.assert_close(found, layer(X).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["down", "ups.1"])
def test_pruned_maps_of_a_generator(part):
    """Hooks of the maps run: the pruned factor follows its parameter from call to call."""
    generator = LAYERS["generator"]()
    map_ = generator.get_submodule(part)
    prune.l1_unstructured(map_, "local", 0.5)
    for _ in range(2):
        before = [y.detach().clone() for y in generator(X)]
        sum(y.square().sum() for y in generator(X)).backward()
        with torch.no_grad():
            map_.local_orig.mul_(2)
        after = generator(X)
        assert not any(torch.equal(a, b) for a, b in zip(after[-1:], before[-1:]))
        assert (map_.local == map_.local_orig * map_.local_mask).all()


def test_offloaded_generator():
    """accelerate moves the weights of each module in for its forward alone."""
    accelerate = pytest.importorskip("accelerate")
    generator = LAYERS["generator"]()
    expected = [y.detach() for y in generator(X)]
    offloaded = accelerate.cpu_offload(generator, execution_device=torch.device("cpu"))
    with torch.no_grad():
        for found, right in zip(offloaded(X), expected, strict=True):
            assert torch.equal(found, right)
