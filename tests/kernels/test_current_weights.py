"""PHMLinear computes with its current parameters, however they are written; `cached_weights` is the one exception."""

import copy
import threading

import pytest
import torch
from torch import nn

import mop_kernels as mk
from mop_kernels import PHMLinear, cached_weights, layers, reference, testing

FORMS = [{}, {"local_rank": 2}, {"bias": False}, {"rank": 5, "local_rank": 1}, {"terms": 1}]  # W pays for all of them
X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def builds(monkeypatch) -> list:
    """One entry for every W that a layer builds."""
    seen = []

    def counted(rule, local):
        seen.append(local)
        return mk.phm_weight(rule, local)

    monkeypatch.setattr(layers, "phm_weight", counted)
    return seen


def evaluated(layer: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


def right(layer: PHMLinear) -> torch.Tensor:
    """The output by W in float64, from the memory of the parameters."""
    p = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    rule = p["rule"] if layer.rank is None else p["rule_in"] @ p["rule_out"]
    local = p["local"] if layer.local_rank is None else p["local_left"] @ p["local_right"]
    return testing.kron_linear(X.double(), rule, local, p.get("bias")).float()


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


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_a_cached_weight(form, dtype, backend):
    layer = PHMLinear(24, 36, dtype=dtype, **form)
    rule = (layer.rule if layer.rank is None else layer.rule_in @ layer.rule_out).detach()
    local = (layer.local if layer.local_rank is None else layer.local_left @ layer.local_right).detach()
    inputs = [X.to(rule), rule, local, None if layer.bias is None else layer.bias.detach()]
    truth = testing.kron_linear(*testing.in_float64(inputs))
    with mk.use_backend(backend), cached_weights():
        y = evaluated(layer, inputs[0])
        assert torch.equal(evaluated(layer, inputs[0]), y)
    assert y.is_contiguous()
    testing.assert_within_budget([y], [reference.phm_linear(*inputs)], [truth])


@pytest.mark.parametrize("form", FORMS)
def test_is_built_once(form, builds):
    layer = PHMLinear(24, 36, **form)
    with cached_weights():
        for x in (X, torch.randn(0, 24), torch.randn(24), torch.randn(2, 3, 24), torch.randn(24, 3).T):
            evaluated(layer, x)
        with torch.inference_mode():
            layer(X)
        layer(X)  # gradients on: by the factors
    assert len(builds) == 1
    evaluated(layer)
    assert len(builds) == 1
    with cached_weights():
        evaluated(layer)
    assert len(builds) == 2


@pytest.mark.parametrize(("form", "pays"), [({"rank": 1}, False), ({"rank": 2}, False), ({"rank": 4}, True)])
def test_low_rank_keeps_it_only_where_that_is_less_work(form, pays, builds):
    """64 -> 64 with 4 terms: 4,096 multiply-adds per row against 1,536 per rank."""
    with cached_weights():
        evaluated(PHMLinear(64, 64, **form), torch.randn(3, 64))
    assert len(builds) == pays


@pytest.mark.parametrize("write", ["new parameter", "load_state_dict, assigned"])
def test_replaced_parameters_are_noticed(write):
    layer = PHMLinear(24, 36)
    with cached_weights():
        evaluated(layer)
        WRITES[write](layer)
        torch.testing.assert_close(evaluated(layer), right(layer), rtol=1e-4, atol=1e-4)


def test_the_block_keeps_nothing_on_the_layer():
    layer = PHMLinear(24, 36)
    with cached_weights():
        evaluated(layer)
        twin = copy.deepcopy(layer)
        write_data(twin)
        torch.testing.assert_close(evaluated(twin), right(twin), rtol=1e-4, atol=1e-4)
        other = PHMLinear(24, 36)
        parameters = {name: p.detach() for name, p in other.named_parameters()}
        with torch.no_grad():
            called = torch.func.functional_call(layer, parameters, (X,))
        torch.testing.assert_close(called, right(other), rtol=1e-4, atol=1e-4)
    write_data(layer)
    torch.testing.assert_close(evaluated(layer), right(layer), rtol=1e-4, atol=1e-4)
    assert set(layer.__dict__) == set(PHMLinear(24, 36).__dict__)


def test_other_threads_do_not_see_the_block(builds):
    layer = PHMLinear(24, 36)
    with cached_weights():
        thread = threading.Thread(target=evaluated, args=(layer,))
        thread.start()
        thread.join()
        assert builds == []


def test_the_inner_block_stands_alone(builds):
    layer = PHMLinear(24, 36)
    with cached_weights():
        evaluated(layer)
        with cached_weights():
            write_data(layer)
            torch.testing.assert_close(evaluated(layer), right(layer), rtol=1e-4, atol=1e-4)
        with pytest.raises(ZeroDivisionError), cached_weights():
            1 / 0  # noqa: B018
    assert len(builds) == 2
    assert layers._cache.get() is None


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype):
    layer = PHMLinear(24, 36)
    with cached_weights():
        for _ in range(2):
            evaluated(layer)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = evaluated(layer, X.to(x_dtype))
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.float(), right(layer), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(2, 23), ValueError, r"last dim of x must be g_in\*loc_in"),
        (torch.randn(2, 24).double(), TypeError, r"x has torch\.float64, rule has torch\.float32"),
        ("x", TypeError, r"x must be a torch\.Tensor"),
    ],
)
def test_messages_are_those_of_the_operation(x, error, message):
    layer = PHMLinear(24, 36)
    with cached_weights():
        evaluated(layer)
        with pytest.raises(error, match=message):
            evaluated(layer, x)


def test_compiled_code_applies_the_factors():
    layer = PHMLinear(24, 36)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with cached_weights():
        evaluated(compiled)
        write_data(layer)
        torch.testing.assert_close(evaluated(compiled), right(layer), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_outlives_the_block():
    layer, x = PHMLinear(64, 64).cuda(), torch.randn(8, 64, device="cuda")
    with torch.no_grad(), cached_weights():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
    graph.replay()
    torch.testing.assert_close(y, layer.to_linear()(x), rtol=1e-4, atol=1e-4)
