"""Values and all gradients of every operation, on every backend, within the error budget."""

import pytest
import torch
from layouts import LAYOUTS

import mop_kernels as mk
from mop_kernels import backends, reference, testing, truth
from mop_kernels.testing import SHAPES, Shape

INPUTS = {
    "phm_weight": lambda *args, **kwargs: testing.linear_inputs(*args, **kwargs)[1:3],
    "phm_linear": testing.linear_inputs,
    "lowrank_phm_linear": testing.lowrank_inputs,
}
TRUTH = {
    "phm_weight": truth.kron_weight,
    "phm_linear": truth.kron_linear,
    "lowrank_phm_linear": truth.kron_lowrank_linear,
}
OPERATIONS = tuple(INPUTS)


def check(op, backend, tensors, grad_layout="contiguous"):
    truth_inputs = testing.in_float64(tensors)
    output = TRUTH[op](*truth_inputs)
    grad = testing.normal(torch.Generator().manual_seed(9), tensors[0].dtype, *output.shape)
    grad = LAYOUTS[grad_layout](grad)
    function = getattr(mk, op)
    actual = testing.value_and_gradients(lambda *t: function(*t, backend=backend), tensors, [grad])
    expected = testing.value_and_gradients(getattr(reference, op), tensors, [grad])
    truth = testing.value_and_gradients(TRUTH[op], truth_inputs, [grad.double()])
    assert actual[0][0].is_contiguous()
    names = ["y", *(f"gradient {k}" for k in range(len(tensors)))]
    testing.assert_within_budget(*([*outputs, *gradients] for outputs, gradients in (actual, expected, truth)), names)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_named_shapes(op, name, dtype, backend):
    check(op, backend, INPUTS[op](SHAPES[name], dtype))


@pytest.mark.parametrize("name", ["odd", "one_row", "no_row"])
@pytest.mark.parametrize("op", ["phm_linear", "lowrank_phm_linear"])
def test_without_bias(op, name, backend):
    check(op, backend, INPUTS[op](SHAPES[name], torch.float32, bias=False))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["odd", "paper_up"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_layouts_of_inputs(op, name, layout, backend):
    check(op, backend, [LAYOUTS[layout](t) for t in INPUTS[op](SHAPES[name], torch.float32)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["odd", "paper_up", "one_row", "many_rows"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_layouts_of_output_gradients(op, name, layout, backend):
    check(op, backend, INPUTS[op](SHAPES[name], torch.float32), layout)


@pytest.mark.parametrize("op", OPERATIONS)
def test_layouts_together(op, dtype, backend):
    tensors = INPUTS[op](SHAPES["prime"], dtype)
    layouts = ("sliced", "transposed", "expanded", "contiguous", "sliced")
    check(op, backend, [LAYOUTS[layout](t) for layout, t in zip(layouts, tensors)], "transposed")


@pytest.mark.parametrize("groups", [(), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("op", ["phm_linear", "lowrank_phm_linear"])
def test_leading_dims_of_x(op, groups, dtype, backend):
    x, *factors = INPUTS[op](SHAPES["odd"], dtype)
    count = torch.Size(groups).numel()
    x = x[:count].reshape(*groups, x.shape[-1])
    function = getattr(mk, op)
    y = function(x, *factors, backend=backend)
    flat = function(x.reshape(-1, x.shape[-1]), *factors, backend=backend)
    assert y.shape == (*groups, flat.shape[-1])
    assert torch.equal(y.reshape(flat.shape), flat)


def test_gradient_of_a_single_vector(dtype, backend):
    tensors = testing.lowrank_inputs(SHAPES["one_row"], dtype)
    grad = torch.randn(1, SHAPES["one_row"].d_out).to(dtype)

    def of_vector(x, *factors):
        return mk.lowrank_phm_linear(x[0], *factors, backend=backend)[None]

    def of_rows(*tensors):
        return mk.lowrank_phm_linear(*tensors, backend=backend)

    for a, b in zip(*(testing.value_and_gradients(f, tensors, [grad]) for f in (of_vector, of_rows))):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("rule_groups", "local_groups"), [((2, 3), (2, 3)), ((), (4,)), ((3, 1), (1, 2)), ((2,), (3, 1)), ((1,), ())]
)
def test_phm_weight_broadcasts_leading_dims(rule_groups, local_groups, dtype, backend):
    g = torch.Generator().manual_seed(3)
    rule = testing.normal(g, dtype, *rule_groups, 3, 4, 2)
    local = testing.normal(g, dtype, *local_groups, 3, 5, 7)
    check("phm_weight", backend, [rule, local])


@pytest.mark.parametrize("layout", ["contiguous", "scalar"])
@pytest.mark.parametrize("op", ["phm_linear", "lowrank_phm_linear"])
def test_bias_gradient_of_very_many_rows(op, layout, backend):
    """One running sum over the rows drifts: equal gradients, as sum() gives, round the same way every time."""
    tensors = INPUTS[op](SHAPES["many_rows"]._replace(rows=50_000), torch.float32)
    grad = testing.normal(torch.Generator().manual_seed(9), torch.float32, 50_000, tensors[-1].numel())
    grad = LAYOUTS[layout](grad)
    needs = [k == len(tensors) - 1 for k in range(len(tensors))]
    _, gradients = testing.value_and_gradients(lambda *t: getattr(mk, op)(*t, backend=backend), tensors, [grad], needs)
    assert testing.relative_error(gradients[-1], grad.double().sum(0)) < 2e-6


WAYS = {  # shape: what the cpu backend's cost model takes for it, forward and backward
    Shape(9, 2, 2, 6, 60, 50, 1): ("local first", "rule first"),  # columns in two tasks
    Shape(20, 2, 2, 6, 60, 50, 1): ("local first", "rule first"),  # rows in three
    Shape(5, 4, 4, 4, 100, 100, 1): ("rule first", "rule first"),
    Shape(21, 4, 4, 4, 100, 100, 1): ("rule first", "rule first"),  # more rows than a local is wide: other products
    Shape(40, 16, 16, 16, 48, 8, 1): ("local first", "W built once"),
    Shape(200, 4, 4, 4, 24, 40, 1): ("W built once", "W built once"),
}


@pytest.mark.parametrize("shape", WAYS, ids=str)
def test_every_way_of_phm_linear(shape, backend):
    if backend == "cpu":
        costs = backends.plan_phm_linear(shape.rows, *shape[1:6])
        assert tuple(min(costs[k], key=costs[k].get) for k in ("forward", "backward")) == WAYS[shape]
    tensors = testing.linear_inputs(shape, torch.float32)
    check("phm_linear", backend, tensors)
    grad = testing.normal(torch.Generator().manual_seed(9), torch.float32, shape.rows, shape.d_out)

    def gradients(needs):
        return testing.value_and_gradients(lambda *t: mk.phm_linear(*t, backend=backend), tensors, [grad], needs)[1]

    together = gradients([True] * 4)
    for k in range(4):
        alone = gradients([j == k for j in range(4)])
        torch.testing.assert_close(alone[k], together[k])
        assert alone[:k] + alone[k + 1 :] == [None] * 3


@pytest.mark.parametrize(
    "shape",
    [
        Shape(70, 3, 3, 2, 5, 7, 2),  # too many rows for CUDA's one launch
        Shape(2, 2, 800, 800, 1, 3, 8),  # rules too large for its shared memory
        Shape(3, 2, 3, 2, 9, 200, 20),  # several chunks of v
    ],
    ids=str,
)
def test_every_way_of_lowrank_phm_linear(shape, backend):
    check("lowrank_phm_linear", backend, testing.lowrank_inputs(shape, torch.float32))
