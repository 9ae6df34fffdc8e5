"""PHMLinear's evaluation weight: the same numbers, built once, never stale, and gone when it should be."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mop_kernels as mk
from mop_kernels import PHMLinear, layers, reference, testing

KEPT = [{}, {"local_rank": 2}, {"bias": False}, {"rank": 5, "local_rank": 1}, {"terms": 1}]
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


def kept(layer: PHMLinear) -> torch.Tensor | None:
    return layer._evaluation_weight._kept and layer._evaluation_weight._kept[1]


def evaluated(layer: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


def warm(**form) -> PHMLinear:
    """A layer in evaluation that keeps its weight."""
    layer = PHMLinear(24, 36, **form).eval()
    evaluated(layer, X.to(layer.local.dtype if form.get("local_rank") is None else layer.local_left.dtype))
    assert kept(layer) is not None
    return layer


def assert_up_to_date(layer: PHMLinear) -> None:
    """What it computes is what its parameters say, in a layer that has never kept anything."""
    fresh = PHMLinear(24, 36, layer.terms, layer.rank, layer.local_rank, layer.bias is not None).eval()
    fresh.to(next(layer.parameters()).dtype).load_state_dict(layer.state_dict())
    x = X.to(next(layer.parameters()).dtype)
    assert torch.equal(evaluated(layer, x), evaluated(fresh, x))


@pytest.mark.parametrize("form", KEPT)
def test_numbers_are_those_of_the_factors(form, dtype, backend):
    layer = PHMLinear(24, 36, dtype=dtype, **form).eval()
    rule = (layer.rule if layer.rank is None else layer.rule_in @ layer.rule_out).detach()
    local = (layer.local if layer.local_rank is None else layer.local_left @ layer.local_right).detach()
    inputs = [X.to(rule), rule, local, None if layer.bias is None else layer.bias.detach()]
    expected = reference.phm_linear(*inputs)
    truth = testing.kron_linear(*testing.in_float64(inputs))
    with mk.use_backend(backend):
        y = evaluated(layer, inputs[0])
        assert torch.equal(evaluated(layer, inputs[0]), y)
    assert kept(layer).shape == (36, 24)
    assert y.is_contiguous()
    testing.assert_within_budget([y], [expected], [truth])


@pytest.mark.parametrize("form", KEPT)
def test_is_built_once(form, builds):
    layer = warm(**form)
    for rows in (1, 7, 0):
        evaluated(layer, torch.randn(rows, 24))
    evaluated(layer, torch.randn(24))
    evaluated(layer, torch.randn(2, 3, 24))
    evaluated(layer, torch.randn(24, 3).T)
    with torch.inference_mode():
        layer(X)
    assert len(builds) == 1


@pytest.mark.parametrize(("form", "keeps"), [({"rank": 1}, False), ({"rank": 2}, False), ({"rank": 4}, True)])
def test_low_rank_keeps_it_only_where_that_is_less_work(form, keeps):
    """64 -> 64 with 4 terms: 4,096 multiply-adds a row against 1,536 a rank."""
    layer = PHMLinear(64, 64, **form).eval()
    evaluated(layer, torch.randn(3, 64))
    assert (kept(layer) is not None) == keeps


def optimiser_step(layer):
    layer(X).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def write_in_place(layer):
    with torch.no_grad():
        layer.rule.mul_(2)


def swap_data(layer):
    layer.local.data = torch.randn_like(layer.local)


def swap_data_for_another_view(layer):
    """The same memory and version, other strides."""
    layer.rule.data = layer.rule.data.mT


def swap_data_twice(layer):
    """The third may come to lie where the first was, if that was freed."""
    layer.local.data = torch.randn_like(layer.local)
    layer.local.data = torch.randn_like(layer.local)


def new_parameter(layer):
    layer.rule = nn.Parameter(torch.randn_like(layer.rule))


def load_from_parent(layer):
    nn.ModuleList([layer]).load_state_dict(nn.ModuleList([PHMLinear(24, 36)]).state_dict())


EVENTS = {
    "optimiser step": optimiser_step,
    "in place": write_in_place,
    "data": swap_data,
    "data of another view": swap_data_for_another_view,
    "data twice": swap_data_twice,
    "parameter": new_parameter,
    "load_state_dict": lambda layer: layer.load_state_dict(PHMLinear(24, 36).state_dict()),
    "load_state_dict(assign=True)": lambda layer: layer.load_state_dict(PHMLinear(24, 36).state_dict(), assign=True),
    "load_state_dict of the parent": load_from_parent,
    "reset_parameters": PHMLinear.reset_parameters,
    "double": PHMLinear.double,
    "to": lambda layer: layer.to(torch.bfloat16),
    "to of the parent": lambda layer: nn.Sequential(layer).to(torch.float64),
    "train and write through .data": lambda layer: (layer.train(), layer.local.data.mul_(2), layer.eval()),
    "write through .data and eval": lambda layer: (layer.local.data.mul_(2), layer.eval()),
}


@pytest.mark.parametrize("event", EVENTS)
def test_follows_the_parameters(event):
    layer = warm()
    EVENTS[event](layer)
    assert_up_to_date(layer)


@pytest.mark.filterwarnings("ignore:mop_kernels uses its slow reference")
def test_half():
    layer = warm().half()
    assert kept(layer) is None
    assert evaluated(layer, X.half()).dtype == torch.float16
    assert kept(layer).dtype == torch.float16


def test_parameters_at_the_same_address_are_not_taken_for_the_old_ones():
    layer = warm()
    for _ in range(20):
        layer.local.data = torch.randn_like(layer.local)
        layer.local.data = torch.randn_like(layer.local)
        assert_up_to_date(layer)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_stand_alone(how):
    layer = warm()
    other = how(layer)
    assert kept(other) is None
    write_in_place(other)
    assert_up_to_date(layer)
    assert_up_to_date(other)
    assert not torch.equal(evaluated(layer), evaluated(other))
    evaluated(other)
    write_in_place(layer)
    assert_up_to_date(layer)


def test_is_not_saved():
    layer = PHMLinear(24, 36)
    names, pickled = list(layer.state_dict()), len(pickle.dumps(layer.eval()))
    evaluated(layer)
    assert list(layer.state_dict()) == names
    assert len(pickle.dumps(layer)) == pickled


def test_nothing_is_kept_while_training_or_with_gradients(builds):
    layer = PHMLinear(24, 36)
    evaluated(layer)
    layer.eval()(X).sum().backward()
    assert kept(layer) is None
    assert builds == []
    assert layer.rule.grad.any()
    evaluated(layer)
    layer.zero_grad()
    layer(X).sum().backward()  # gradients are not lost where a weight is kept already
    assert layer.rule.grad.any()


@pytest.mark.parametrize("event", ["train", "eval", "double", "load_state_dict"])
def test_memory_is_freed(event):
    layer = warm()
    memory = weakref.ref(kept(layer))
    getattr(layer, event)(*[layer.state_dict()] * (event == "load_state_dict"))
    assert memory() is None


def test_the_old_weight_goes_before_the_new_one_comes(monkeypatch):
    layer = warm()
    memory = weakref.ref(kept(layer))
    alive = []
    monkeypatch.setattr(layers, "phm_weight", lambda *args: (alive.append(memory()), mk.phm_weight(*args))[1])
    write_in_place(layer)
    evaluated(layer)
    assert alive == [None]


def test_inference_mode():
    layer = PHMLinear(24, 36).eval()
    with torch.inference_mode():
        y = layer(X)
    assert kept(layer) is not None
    assert torch.equal(evaluated(layer), y)
    with torch.inference_mode():  # parameters without a version counter
        born_there = PHMLinear(24, 36).eval()
        y = born_there(X)
        born_there.rule.mul_(2)
        assert not torch.equal(born_there(X), y)
    assert kept(born_there) is None


def test_parametrized_factors_are_never_stale():
    """They are computed at each access: new tensors of version 0, often at the old address."""
    layer = PHMLinear(24, 36).eval()
    nn.utils.parametrize.register_parametrization(layer, "rule", nn.Tanh())
    for _ in range(5):
        before = evaluated(layer)
        write_in_place_of_original(layer)
        assert not torch.equal(evaluated(layer), before)


def write_in_place_of_original(layer):
    with torch.no_grad():
        layer.parametrizations.rule.original.mul_(0.5)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype):
    layer = PHMLinear(24, 36).eval()
    plain = evaluated(layer)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            y = evaluated(layer, X.to(x_dtype))
        assert y.dtype == kept(layer).dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), plain, rtol=0.02, atol=0.02)
        assert torch.equal(evaluated(layer), plain)
        assert kept(layer).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.randn(2, 23),
            ValueError,
            r"the last dim of x must be g_in\*loc_in = 4\*6 = 24; got x of shape",
        ),
        (torch.randn(()), ValueError, r"x must have shape \(\.\.\., in\); got a scalar"),
        (torch.randn(2, 24).double(), TypeError, r"x has torch\.float64, rule has torch\.float32"),
        (torch.ones(2, 24).long(), TypeError, r"x must be a floating-point tensor; got torch\.int64"),
        (torch.randn(2, 24, device="meta"), ValueError, r"x is on meta, rule on cpu"),
        ([[1.0] * 24], TypeError, r"x must be a torch\.Tensor; got list"),
    ],
)
def test_messages_are_those_of_the_operation(x, error, message):
    with pytest.raises(error, match=message):
        evaluated(warm(), x)


def test_a_named_backend_that_cannot_run_raises_though_a_weight_is_kept():
    absent = next((name for name in ("cuda", "triton", "cpu") if name not in mk.available_backends()), None)
    if absent is None:
        pytest.skip("every backend runs here")
    layer = warm()
    with mk.use_backend(absent), pytest.raises(RuntimeError, match="cannot run here"):
        evaluated(layer)


def test_compiled_code_does_not_see_it():
    torch._dynamo.reset()
    layer = warm()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(evaluated(compiled), evaluated(layer))
    layer.local.data.mul_(2)
    after = evaluated(compiled)
    layer.eval()
    torch.testing.assert_close(after, evaluated(layer))
    torch._dynamo.reset()


def test_fake_tensors_are_not_kept():
    with FakeTensorMode():
        layer = PHMLinear(24, 36).eval()
        assert evaluated(layer, torch.randn(5, 24)).shape == (5, 36)
    assert kept(layer) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_captured_graph_outlives_it():
    layer, x = PHMLinear(24, 36).cuda().eval(), X.cuda()
    evaluated(layer, x)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = layer(x)
    write_in_place(layer)
    layer.train().eval()
    graph.replay()
    torch.testing.assert_close(y, evaluated(layer, x))
