"""attempt_mix: values and gradients against the equations, one example at a time; ties, masks and tasks."""

import math
from pathlib import Path

import pytest
import torch
from judging import (
    RequestedGradients,
    assert_as_exact_as_one,
    assert_asked,
    assert_same,
    call_prompts,
    raw_prompt_arguments,
)
from layouts import LAYOUTS
from safetensors.torch import load_file

from mop_kernels import ops, reference, testing
from mop_kernels.testing import PROMPTS, PromptShape
from mop_kernels.truth import attempt_by_example

NAMES = ["x", "source", "target", "w_down", "w_up", "ln_weight", "ln_bias"]
RESULTS = ["prefixed", "attention", *(f"gradient of {name}" for name in NAMES)]
SMALL = PROMPTS["odd"]
ASKED = {
    "x": [0],
    "source": [1],
    "target": [2],
    "w_down": [3],
    "w_up": [4],
    "ln_weight": [5],
    "ln_bias": [6],
    "what ATTEMPT trains": [2, 3, 4, 5, 6],
    "the prompts": [1, 2],
    "all but x": [1, 2, 3, 4, 5, 6],
    "x and w_up": [0, 4],
}


def expected(tensors, mask=None, *, task_ids, temperature):
    x, source, target, *factors = tensors
    return reference.attempt_mix(x, mask, source, target, task_ids, *factors, temperature=temperature)[:2]


def output_gradients(tensors, options, layout="contiguous"):
    g = torch.Generator().manual_seed(9)
    return [LAYOUTS[layout](testing.normal(g, y.dtype, *y.shape)) for y in expected(tensors, **options)]


def check(backend, tensors, options, layout="contiguous"):
    grads = output_gradients(tensors, options, layout)
    exact = testing.in_float64(tensors)
    needs = [tensors[0].shape[0] > 0] * len(tensors)  # of no example nothing has a gradient: all are zero
    found = testing.value_and_gradients(lambda *t: call_prompts(t, **options, backend=backend), tensors, grads)
    forms = [lambda *t: expected(t, **options), lambda *t: attempt_by_example(*t, **options)][: 1 + any(needs)]
    truth = testing.value_and_gradients(
        lambda *t: attempt_by_example(*t, **options), exact, [g.double() for g in grads], needs
    )
    if not any(needs):
        truth = truth[0], [torch.zeros_like(t) for t in exact]
    assert all(y.is_contiguous() for some in found for y in some)
    plain = [lambda form=form: testing.value_and_gradients(form, tensors, grads) for form in forms]
    assert_as_exact_as_one(plain, found, truth, RESULTS)
    return found


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("name", [name for name in PROMPTS if name != "paper"])
def test_named_shapes(name, masked, dtype, backend):
    tensors, options = testing.prompt_inputs(PROMPTS[name], dtype)
    check(backend, tensors, options if masked else options | {"mask": None})


def test_the_shape_of_the_paper(backend):
    check(backend, *testing.prompt_inputs(PROMPTS["paper"]._replace(batch=5), torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(layout, backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    given = [LAYOUTS[layout](t) for t in tensors]
    if layout == "scalar":  # the LayerNorm of equal numbers is 0, and its gradients are rounding
        given[4] = tensors[4]
    check(backend, given, options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_output_gradients(layout, backend):
    check(backend, *testing.prompt_inputs(SMALL, torch.float32), layout)


def test_strided_mask_and_task_ids(backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    spread = torch.full((2 * SMALL.batch,), -1)
    spread[::2] = options["task_ids"]
    strided = options | {"mask": options["mask"].mT.contiguous().mT, "task_ids": spread[::2]}
    for a, b in zip(
        call_prompts(tensors, **strided, backend=backend), call_prompts(tensors, **options, backend=backend)
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_a_mask_of_integers(kind, backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    integers = options | {"mask": options["mask"].to(kind) * 2}
    for a, b in zip(
        call_prompts(tensors, **integers, backend=backend), call_prompts(tensors, **options, backend=backend)
    ):
        assert torch.equal(a, b)


# The maximum: ties, padding, NaN and infinities.


def gradient_of_the_maximum(x, mask, backend):
    """The gradient of the attention alone by x: that of the pool."""
    tensors, options = testing.prompt_inputs(PromptShape(*x.shape, 3, 2, 1, 4), x.dtype)
    leaf = x.clone().requires_grad_()
    _, attention = call_prompts([leaf, *tensors[1:]], **options | {"mask": mask}, backend=backend)
    return torch.autograd.grad(attention[:, 0].sum(), leaf)[0], attention


@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_of_equal_numbers_the_first_gets_the_gradient(length, backend):
    x = torch.ones(2, length, 12)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, 0] = length == 1
    gradient, _ = gradient_of_the_maximum(x, mask, backend)
    first = [0, int(length > 1)]
    for k in range(2):
        assert gradient[k, first[k]].any()
        assert not gradient[k, [s for s in range(length) if s != first[k]]].any()


def test_ties_everywhere(dtype, backend):
    """Numbers out of five: every column of x and of the prompts has its maximum in many places."""
    tensors, options = testing.prompt_inputs(PromptShape(4, 33, 21, 12, 3, 2, 5), dtype)
    check(backend, [t.round().clamp(-2, 2) if k < 3 else t for k, t in enumerate(tensors)], options)


@pytest.mark.parametrize("fill", [-3.0, 0.0, -math.inf])
def test_a_row_of_padding_only(fill, backend):
    """Its maximum is 0, and its gradient that of prefixed alone."""
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    tensors[0][2] = fill
    options["mask"][2] = False
    options["mask"][1] = torch.arange(SMALL.length) > 3  # padding on the left
    grads = output_gradients(tensors, options)
    values, gradients = testing.value_and_gradients(
        lambda *t: call_prompts(t, **options, backend=backend), tensors, grads
    )
    assert torch.equal(gradients[0][2], grads[0][2, SMALL.rows :])
    zero = [tensors[0].clone(), *tensors[1:]]
    zero[0][2] = 0
    alike = call_prompts(zero, **options | {"mask": options["mask"].clone().index_fill_(0, torch.tensor(2), True)})
    torch.testing.assert_close(values[1], alike[1])
    if fill > -math.inf:
        check(backend, tensors, options)


def test_where_all_that_counts_is_minus_infinity_the_first_that_counts_is_taken(backend):
    x = torch.full((1, 4, 6), -math.inf)
    mask = torch.tensor([[False, True, True, False]])
    _, _, peak, position = ops.get("attempt_mix", backend)(*raw_prompt_arguments(x, mask))
    assert torch.equal(peak, torch.full((1, 6), -math.inf))
    assert torch.equal(position, torch.full((1, 6), 1, dtype=torch.int32))


def test_nan_is_the_largest_and_the_first_nan_is_taken(backend):
    x = torch.zeros(1, 6, 20)
    x[0, 1], x[0, 3, ::2], x[0, 5] = 7, math.nan, math.nan
    mask = torch.tensor([[True, True, True, True, True, True]])
    _, _, peak, position = ops.get("attempt_mix", backend)(*raw_prompt_arguments(x, mask))
    assert peak.isnan().all()
    assert torch.equal(position[0, ::2], torch.full((10,), 3, dtype=torch.int32))
    assert torch.equal(position[0, 1::2], torch.full((10,), 5, dtype=torch.int32))
    mask[0, 3:] = False
    _, attention, peak, _ = ops.get("attempt_mix", backend)(*raw_prompt_arguments(x, mask))
    assert torch.equal(peak, torch.full((1, 20), 7.0))
    assert attention.isfinite().all()


def test_nan_in_a_prompt_reaches_its_attention(backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    tensors[1][1, 2, 3] = math.nan
    _, attention = call_prompts(tensors, **options, backend=backend)
    assert attention.isnan().all()


def test_only_one_result_is_used(backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    both = output_gradients(tensors, options)
    for kept in range(2):
        alone = [g if k == kept else torch.zeros_like(g) for k, g in enumerate(both)]
        _, with_zeros = testing.value_and_gradients(
            lambda *t: call_prompts(t, **options, backend=backend), tensors, alone
        )
        _, found = testing.value_and_gradients(
            lambda *t, kept=kept: call_prompts(t, **options, backend=backend)[kept], tensors, [both[kept]]
        )
        for a, b in zip(found, with_zeros, strict=True):
            assert_same(a, b, backend)


def test_tasks_without_an_example_get_zero_gradients(backend):
    tensors, options = testing.prompt_inputs(PROMPTS["many_examples"]._replace(tasks=6), torch.float32)
    options["task_ids"] = options["task_ids"] % 2 * 3 + 1  # 1 and 4
    _, gradients = check(backend, tensors, options)
    assert not gradients[2][[0, 2, 3, 5]].any()
    assert gradients[2][[1, 4]].any(-1).all()


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_what_is_asked_is_computed(asked, backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    grads = output_gradients(tensors, options)

    def function(*t):
        return call_prompts(t, **options, backend=backend)

    needs = [k in asked for k in range(len(tensors))]
    _, every = testing.value_and_gradients(function, tensors, grads)
    with RequestedGradients() as requests:
        _, some = testing.value_and_gradients(function, tensors, grads, needs)
    assert requests.seen == [sum(1 << k for k in asked)]
    for needed, gradient, full in zip(needs, some, every, strict=True):
        assert_asked(needed, gradient, full, backend)


def test_no_graph_where_nothing_asks(backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    assert not any(y.requires_grad for y in call_prompts(tensors, **options, backend=backend))


@pytest.mark.parametrize("masked", [True, False])
def test_gradcheck(masked, backend, float64):
    tensors, options = testing.prompt_inputs(PromptShape(3, 4, 5, 3, 2, 2, 3), float64)
    options["mask"] = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]) > 0 if masked else None
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: call_prompts(t, **options, backend=backend), leaves)


def test_backward_does_not_read_x(backend):
    """It may change after the call, and its memory may go; a prompt may not change."""
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    grads = output_gradients(tensors, options)
    _, gradients = testing.value_and_gradients(lambda *t: call_prompts(t, **options, backend=backend), tensors, grads)
    leaves = [t.requires_grad_() for t in tensors]
    outputs = call_prompts(leaves, **options, backend=backend)
    with torch.no_grad():
        leaves[0].fill_(math.nan)
    found = torch.autograd.grad(outputs, leaves, grads)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    prefixed, _ = call_prompts(leaves, **options, backend=backend)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        prefixed.sum().backward()


# Runs, compilation, autocast.


def results(tensors, options, backend):
    grads = output_gradients(tensors, options)
    found = testing.value_and_gradients(lambda *t: call_prompts(t, **options, backend=backend), tensors, grads)
    return [t for some in found for t in some]


def test_two_runs_are_bit_equal(backend):
    tensors, options = testing.prompt_inputs(PROMPTS["many_examples"]._replace(width=150, rows=20), torch.float32)
    for a, b in zip(results(tensors, options, backend), results(tensors, options, backend), strict=True):
        assert torch.equal(a, b)


def test_any_number_of_threads_gives_the_same_bits(backend):
    if backend != "cpu":
        pytest.skip("its work is not shared by threads of its own")
    tensors, options = testing.prompt_inputs(PROMPTS["many_examples"]._replace(width=300, rows=20), torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(tensors, options, backend)
        for count in (2, 3):
            torch.set_num_threads(count)
            for a, b in zip(results(tensors, options, backend), alone, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_an_example_gives_the_bits_that_it_gives_alone(backend):
    """Decoding one by one, or in another batch, does not change a prompt."""
    if backend != "cpu":
        pytest.skip("torch's own products may differ with the number of rows")
    tensors, options = testing.prompt_inputs(PROMPTS["many_examples"], torch.float32)
    together = call_prompts(tensors, **options, backend=backend)
    for k in (0, 13, 18):
        one = {name: options[name][k : k + 1] for name in ("mask", "task_ids")}
        alone = call_prompts([tensors[0][k : k + 1], *tensors[1:]], **options | one, backend=backend)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[k])


def test_results_share_memory_with_nothing(backend):
    tensors, options = testing.prompt_inputs(SMALL, torch.float32)
    grads = output_gradients(tensors, options)
    outputs, gradients = testing.value_and_gradients(
        lambda *t: call_prompts(t, **options, backend=backend), tensors, grads
    )
    taken = [t.untyped_storage().data_ptr() for t in (*tensors, *grads, *outputs, *gradients)]
    assert len(set(taken)) == len(taken)


GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "attempt_sub.safetensors")
STORED = {
    "source": "source",
    "target": "target",
    "w_down": "attn_W_down.weight",
    "w_up": "attn_W_up.weight",
    "ln_weight": "layer_norm.weight",
    "ln_bias": "layer_norm.bias",
}


@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tag", ["sub_single", "sub_multitask", "sub_sharedeval"])
def test_the_released_code(tag, kind, backend):
    """Which pools over padding, and, evaluating, gives every example the prompt of task 0."""
    if kind == torch.float64 and backend == "triton":
        pytest.skip("the kernels of a GPU take no float64")
    stored = {name.removeprefix(tag + "."): t for name, t in GOLDEN.items() if name.startswith(tag + ".")}
    device = torch.get_default_device()

    def ours(name, tensor):
        """As attempt_mix takes it: an nn.Linear's weight transposed, a single target with its dim of tasks."""
        tensor = tensor.mT if name.startswith("w_") else tensor
        return (tensor[None] if name == "target" and tensor.dim() == 2 else tensor).to(device, kind)

    x = stored["x_embed"].to(device, kind)
    read = {name: stored.get(f"param.{key}", stored.get(key)) for name, key in STORED.items()}
    tensors = [x, *(ours(name, t) for name, t in read.items())]
    task_ids = stored.get("task_ids", torch.zeros(4, dtype=torch.int64)).to(device)
    options = {"task_ids": task_ids, "temperature": stored["T"].item()}
    rows = stored["soft_prompt"].shape[1]
    values, gradients = testing.value_and_gradients(
        lambda *t: call_prompts(t, **options, backend=backend)[0][:, :rows], tensors, [stored["gout"].to(device, kind)]
    )
    near = {"rtol": 2e-5, "atol": 1e-6}
    torch.testing.assert_close(values[0].float().cpu(), stored["soft_prompt"], **near)
    for (name, key), gradient in zip(STORED.items(), gradients[1:], strict=True):
        wanted = ours(name, stored[f"grad.{key}"])
        scale = wanted.abs().max()  # gradients through a temperature of 43 are small
        torch.testing.assert_close(gradient / scale, wanted / scale, **near)
