"""mop_ffn: shapes, sharing, activations, full rules and layouts, values and all gradients within the error budget."""

import random

import pytest
import torch
from judging import assert_same, call_bank, check_bank
from layouts import LAYOUTS, SHARINGS

from mop_kernels import reference, testing
from mop_kernels.testing import BANKS
from mop_kernels.truth import kron_mop_ffn


@pytest.mark.parametrize("name", [name for name in BANKS if name != "paper"])
def test_named_banks(name, dtype, backend):
    check_bank(testing.mop_inputs(BANKS[name], dtype), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_layers_of_the_bank_of_the_paper(dtype, backend):
    check_bank(testing.mop_inputs(BANKS["paper"]._replace(layers=2), dtype), backend)


def test_the_bank_of_the_paper(backend):
    """All 60 pairs, beside reference.py in float64: explicit Kronecker products of this size take too long."""
    tensors = testing.mop_inputs(BANKS["paper"], torch.float32)
    grads = [torch.randn(12, 5, 40, 768) for _ in range(2)]
    actual = testing.value_and_gradients(lambda *t: call_bank(t, backend=backend), tensors, grads)
    expected = testing.value_and_gradients(
        lambda *t: reference.mop_ffn(*testing.as_mop_arguments(t)),
        testing.in_float64(tensors),
        [g.double() for g in grads],
    )
    for found, right in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        assert testing.relative_error(found, right) < 2e-5


@pytest.mark.parametrize("sharing", SHARINGS)
def test_sharing(sharing, backend):
    check_bank(testing.mop_inputs(BANKS["small"], torch.float32, sharing=SHARINGS[sharing]), backend)


@pytest.mark.parametrize("seed", range(12))
def test_any_group_sizes(seed, backend):
    """Each tensor has its own group dims, drawn from all four; a map's may differ from another map's."""
    draw = random.Random(seed)
    bank = BANKS[draw.choice(["small", "odd", "reading_b"])]
    dtype = torch.float32 if backend in ("triton", "cuda") else torch.float64
    every = testing.mop_inputs(bank, dtype, sharing=dict.fromkeys(testing.MOP_SHARING, (True, True)))
    group = [(draw.random() < 0.5, draw.random() < 0.5) for _ in every]
    group[5:] = group[5:9] * bank.maps  # up maps have equal shapes
    group[draw.randrange(9)] = (True, True)
    group[5:] = group[5:9] * bank.maps
    tensors = [
        t[: None if full_layers else 1, : None if full_experts else 1]
        for t, (full_layers, full_experts) in zip(every, group)
    ]
    check_bank(tensors, backend, activation=draw.choice(list(reference.ACTIVATIONS)))


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation, dtype, backend):
    check_bank(testing.mop_inputs(BANKS["small"], dtype), backend, activation=activation)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_far_from_zero(activation, backend):
    """Hidden values of size 1000: no overflow to NaN on the way to a finite result."""
    x, *factors = testing.mop_inputs(BANKS["small"], torch.float32)
    tensors = [1000 * x, *factors]
    grads = [torch.ones(2, 3, 6, 18)] * 2
    actual = testing.value_and_gradients(
        lambda *t: call_bank(t, activation=activation, backend=backend), tensors, grads
    )
    truth = testing.value_and_gradients(
        lambda *t: kron_mop_ffn(*testing.as_mop_arguments(t), activation),
        testing.in_float64(tensors),
        testing.in_float64(grads),
    )
    for found, right in zip((*actual[0], *actual[1]), (*truth[0], *truth[1]), strict=True):
        assert testing.relative_error(found, right) < 1e-3


@pytest.mark.parametrize("blocks_v", [1, 2])
@pytest.mark.parametrize("name", ["odd", "small"])
def test_programs_that_compute_all_maps(name, blocks_v, backend):
    """Triton's programs compute one map where few pairs would leave the GPU idle, all maps otherwise."""
    if backend != "triton":
        pytest.skip("the launch configurations are Triton's")
    from mop_kernels.triton_kernels.launch import asked, forced

    tensors = testing.mop_inputs(BANKS[name], torch.float32)
    with asked() as choices:
        call_bank(tensors, backend=backend)
    (choice,) = choices
    (own, *_) = choice.candidates()
    assert own["MAPS"] == 1
    with forced(choice, own | {"MAPS": BANKS[name].maps, "BLOCKS_V": blocks_v, "BLOCK_C": 2}):
        check_bank(tensors, backend)


@pytest.mark.parametrize("sharing", ["mop", "x_per_expert", "no_both", "bias_per_pair"])
@pytest.mark.parametrize("name", ["odd", "reading_b"])
def test_without_bias(name, sharing, backend):
    check_bank(testing.mop_inputs(BANKS[name], torch.float32, sharing=SHARINGS[sharing], bias=False), backend)


def test_bias_in_one_map_only(backend):
    tensors = testing.mop_inputs(BANKS["small"], torch.float32)
    tensors[4] = None
    check_bank(tensors, backend)
    tensors = testing.mop_inputs(BANKS["small"], torch.float32)
    tensors[8] = tensors[12] = None
    check_bank(tensors, backend)


@pytest.mark.parametrize("scope", ["global", "layer", "pair"])
@pytest.mark.parametrize("name", ["small", "reading_b", "high_rank"])  # square, g_in > g_out and g_in < g_out
def test_full_rule(name, scope, dtype, backend):
    rule_groups = {"global": (False, False), "layer": (True, False), "pair": (True, True)}[scope]
    sharing = testing.MOP_SHARING | {"rule_in": rule_groups}
    check_bank(testing.mop_inputs(BANKS[name], dtype, sharing=sharing, full_rule=True), backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["small", "odd"])
def test_layouts_of_inputs(name, layout, backend):
    check_bank([LAYOUTS[layout](t) for t in testing.mop_inputs(BANKS[name], torch.float32)], backend)


@pytest.mark.parametrize(
    "layouts", [*((layout,) for layout in LAYOUTS), ("scalar", "contiguous"), ("expanded", "sliced")]
)
@pytest.mark.parametrize("name", ["small", "one_row", "reading_b"])
def test_layouts_of_output_gradients(name, layouts, backend):
    check_bank(testing.mop_inputs(BANKS[name], torch.float32), backend, grad_layouts=layouts)


def test_layouts_together(dtype, backend):
    layouts = ("expanded", "sliced", "transposed", "contiguous", "sliced", "transposed")
    tensors = testing.mop_inputs(BANKS["odd"], dtype)
    tensors = [LAYOUTS[layouts[k % len(layouts)]](t) for k, t in enumerate(tensors)]
    check_bank(tensors, backend, grad_layouts=("transposed", "scalar"))


def test_groups_given_as_expanded_tensors(backend):
    """A factor repeated by expand() is a factor of full group size: its gradient has that size too."""
    tensors = testing.mop_inputs(BANKS["small"], torch.float32)
    check_bank([t.expand(2, 3, *t.shape[2:]) for t in tensors], backend)


def test_one_tensor_in_several_places(backend):
    """The same factors as both up maps: their gradients add up."""
    tensors = testing.mop_inputs(BANKS["small"], torch.float32)
    leaf = tensors[7].clone().requires_grad_()
    tied = [*tensors[:7], leaf, *tensors[8:11], leaf, tensors[12]]
    first, second = call_bank(tied, backend=backend)
    (tied_gradient,) = torch.autograd.grad([first, second], leaf, [torch.ones_like(first), torch.ones_like(second)])
    _, separate = testing.value_and_gradients(
        lambda *t: call_bank(t, backend=backend), [t.detach() for t in tied], [torch.ones_like(first)] * 2
    )
    assert_same(tied_gradient, separate[7] + separate[11], backend)


def test_a_map_whose_output_is_not_used(backend):
    tensors = testing.mop_inputs(BANKS["small"], torch.float32)
    leaves = [t.clone().requires_grad_() for t in tensors]
    first, second = call_bank(leaves, backend=backend)
    used = torch.autograd.grad(first.sum(), leaves, allow_unused=True)
    leaves = [t.clone().requires_grad_() for t in tensors]
    first, second = call_bank(leaves, backend=backend)
    zeroed = torch.autograd.grad(first.sum() + 0 * second.sum(), leaves)
    for k, (a, b) in enumerate(zip(used, zeroed)):
        assert torch.equal(torch.zeros_like(b) if a is None else a, b), k
