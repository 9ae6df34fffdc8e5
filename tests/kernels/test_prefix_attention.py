"""prefix_attention: values and gradients of many shapes, masks, dropout bits, and what is computed on request."""

import pytest
import torch
from judging import RequestedGradients, assert_asked, assert_same
from layouts import LAYOUTS

import mop_kernels as mk
from mop_kernels import ops, step_reference, testing
from mop_kernels.testing import ATTENTIONS, AttentionShape

NAMES = ["query", "key", "value", "prefix_key", "prefix_value"]
DROPOUT, SEED = 0.3, 2**62 + 12345
SHAPES = ATTENTIONS | {
    "one": AttentionShape(5, 4, 1, 1, 1, 1, 2, False),
    "three_blocks": AttentionShape(2, 2, 101, 90, 64, 40, 3, False),
    "three_blocks_causal": AttentionShape(2, 2, 101, 101, 24, 17, 2, True),
    "more_queries": AttentionShape(2, 1, 60, 33, 12, 5, 1, True),
    "more_keys": AttentionShape(1, 2, 33, 60, 8, 0, 0, True),
    "empty_prefix": AttentionShape(2, 2, 9, 11, 16, 0, 1, False),
    "no_tokens": AttentionShape(3, 2, 10, 0, 8, 3, 2, False),
    "no_columns": AttentionShape(2, 2, 4, 0, 8, 0, 0, False),
    "no_queries": AttentionShape(2, 2, 0, 6, 8, 2, 1, False),
    "no_examples": AttentionShape(0, 2, 5, 6, 8, 2, 2, False),
    "wide_head": AttentionShape(2, 1, 7, 21, 130, 4, 1, False),
    "many_keys": AttentionShape(1, 1, 50, 2900, 5, 3, 1, False),
}
ASKED = {
    **{name: [k] for k, name in enumerate(NAMES)},
    "the prefix": [3, 4],
    "the tokens": [1, 2],
    "values and their prefix": [2, 4],
    "keys and their prefix": [1, 3],
    "all but the query": [1, 2, 3, 4],
}


def inputs(name, dtype=torch.float32, **kwargs):
    """Return inputs for which the plain form is not exact by chance: its error is the budget."""
    return testing.attention_inputs(SHAPES[name], dtype, seed=3, **kwargs)


def call(backend, tensors, options, **settings):
    *tensors, bias = tensors
    return mk.prefix_attention(*tensors, bias=bias, **options, **settings, backend=backend)


def raw(backend, tensors, options, *, causal=False, dropout=DROPOUT, seed=SEED):
    """Return the outputs of the op, out (b, q, h, d) and lse (b, h, q)."""
    *rows, prefix_key, prefix_value, bias = tensors
    rows = [t.transpose(1, 2).contiguous() for t in rows]
    key_mask, seed = options["key_mask"], torch.tensor([seed])
    scale = tensors[0].shape[-1] ** -0.5
    args = (*rows, prefix_key, prefix_value, options["rows"], bias, key_mask, seed, causal, scale, dropout)
    return ops.call("prefix_attention", backend, args)


def values_and_gradients(backend, tensors, options, grad, needs=(True,) * 5, **settings):
    function = lambda *given: call(backend, given, options, **settings)  # noqa: E731
    values, gradients = testing.value_and_gradients(function, tensors, [grad], [*needs, False])
    return [*values, *gradients[:5]]


def check(backend, tensors, options, layout="contiguous", **settings):
    grad = LAYOUTS[layout](testing.normal(torch.Generator().manual_seed(9), tensors[0].dtype, *tensors[0].shape))
    needs = [t is not None for t in tensors[:5]]
    found = values_and_gradients(backend, tensors, options, grad, needs, **settings)
    plain = values_and_gradients("reference", tensors, options, grad, needs, **settings)
    exact = testing.in_float64(tensors)
    truth = values_and_gradients("reference", exact, options, grad.double(), needs, **settings)
    if tensors[0].dtype == torch.float64:  # the plain form is the truth itself: its error says nothing
        for name, a, e in zip(["out", *NAMES], found, truth, strict=True):
            assert (a is None) == (e is None)
            assert a is None or (a.shape == e.shape and testing.relative_error(a, e) < 1e-13), name
    else:
        testing.assert_within_budget(found, plain, truth, ["out", *NAMES])
    return found


def without_keys(options, example=0):
    options["key_mask"][example] = False
    return options


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes(name, dropout, dtype, backend):
    tensors, options = inputs(name, dtype, bias=name != "three_blocks")
    check(backend, tensors, options, causal=SHAPES[name].causal, dropout=dropout, seed=SEED)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_output_gradients(layout, backend):
    tensors, options = inputs("odd")
    check(backend, tensors, options, layout, dropout=DROPOUT, seed=SEED)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "unaligned"])
def test_layouts_of_inputs(layout, backend):
    tensors, options = inputs("odd")
    grad = torch.randn(tensors[0].shape)
    there = [LAYOUTS[layout](t) for t in tensors]
    expected = values_and_gradients(backend, tensors, options, grad, dropout=DROPOUT, seed=SEED)
    options["key_mask"] = LAYOUTS["transposed"](options["key_mask"])
    for a, b in zip(values_and_gradients(backend, there, options, grad, dropout=DROPOUT, seed=SEED), expected):
        assert_same(a, b, backend)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["odd", "no_prefix"])
def test_every_way_to_mask(name, causal, backend):
    """No mask, an example whose keys are all padding, and a mask without holes."""
    tensors, options = inputs(name)
    check(backend, tensors, options | {"key_mask": None}, causal=causal)
    check(backend, tensors, without_keys(options), causal=causal)
    options["key_mask"] = torch.arange(tensors[1].shape[2]) < torch.arange(2, 2 + len(tensors[1]))[:, None]
    check(backend, tensors, options, causal=causal)


def test_lse_is_the_logarithm_of_the_sum_of_what_a_query_sees(backend):
    tensors, options = inputs("no_prefix")
    query, key, *_, bias = testing.in_float64(tensors)
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    scores = scores.masked_fill(~without_keys(options)["key_mask"][:, None, None], -torch.inf)
    lse = raw(backend, tensors, options)[1]
    assert lse.dtype == torch.float32
    assert lse[0].eq(-torch.inf).all()
    torch.testing.assert_close(lse[1:].double(), scores.logsumexp(3)[1:], rtol=1e-6, atol=1e-6)


def test_a_query_without_columns_gives_zeros(backend):
    tensors, options = inputs("no_prefix")
    grad = torch.randn(tensors[0].shape)
    needs = [t is not None for t in tensors[:5]]
    out, *gradients = values_and_gradients(backend, tensors, without_keys(options), grad, needs, dropout=DROPOUT)
    for t in (out, *gradients[:3]):
        assert not t[0].any()
        assert t[1].any()


@pytest.mark.parametrize("p", [0.5 / 65536, 1.5 / 65536, 0.1, 0.5, 0.999, 1 - 2**-20])
def test_dropout_drops_what_the_generator_says(p, backend):
    """Values that are the unit vectors: the output is the matrix of weights."""
    shape = AttentionShape(2, 3, 50, 29, 46, 17, 1, False)
    (query, key, _, prefix_key, _, bias), _ = testing.attention_inputs(shape, torch.float32)
    unit = torch.eye(46)
    prefix_value = unit[:17].expand(1, 3, 17, 46).contiguous()
    value = unit[17:].expand(2, 3, 29, 46).contiguous()
    tensors = [query, key, value, prefix_key, prefix_value, bias]
    weights = call(backend, tensors, {"rows": None, "key_mask": None})
    found = call(backend, tensors, {"rows": None, "key_mask": None}, dropout=p, seed=SEED)
    keep = step_reference.kept(torch.tensor([SEED], device=found.device), found.shape, p, found.device)
    assert torch.equal(found != 0, keep)
    torch.testing.assert_close(found, weights * keep * step_reference.factor(p), rtol=1e-6, atol=0)


def test_seeds_of_all_64_bits(backend):
    tensors, options = inputs("odd")
    for seed in (-1, -(2**63), 2**63 - 1):
        found, plain = (raw(which, tensors, options, seed=seed)[0] for which in (backend, "reference"))
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_what_is_asked_is_computed(asked, backend):
    tensors, options = inputs("causal")
    grad = torch.randn(tensors[0].shape)
    settings = {"causal": True, "dropout": DROPOUT, "seed": SEED}
    full = values_and_gradients(backend, tensors, options, grad, **settings)
    needs = [k in asked for k in range(5)]
    with RequestedGradients() as requested:
        found = values_and_gradients(backend, tensors, options, grad, needs, **settings)
    assert requested.seen == [sum(1 << k for k in asked)]
    for needed, gradient, expected in zip(needs, found[1:], full[1:]):
        assert_asked(needed, gradient, expected, backend)


def test_rows_without_an_example_have_gradient_zero(backend):
    tensors, options = inputs("odd")
    options["rows"] = torch.tensor([1, 1, 1])
    found = check(backend, tensors, options, dropout=DROPOUT, seed=SEED)
    for gradient in found[4:]:
        assert not gradient[0].any()
        assert gradient[1].any()


def test_a_nan_stays_in_the_rows_that_see_it(backend):
    tensors, options = inputs("causal")
    tensors[0][0, 0, 3, 0] = torch.nan
    tensors[1][1, 1, 5, 0] = torch.nan
    options["key_mask"] = None
    out = call(backend, tensors, options, causal=True)
    expected = torch.zeros(out.shape[:3], dtype=torch.bool)
    expected[0, 0, 3] = True
    expected[1, 1, 5:] = True
    assert torch.equal(out.isnan().all(3), expected)
    assert torch.equal(out.isnan().any(3), expected)


def test_padding_changes_no_bit(backend):
    """Neither its length nor its numbers, NaN here, matter."""
    if backend != "cpu":
        pytest.skip("only the CPU kernels never read padding")
    tensors, _ = inputs("three_blocks")
    tokens, padding = 90, 37
    real = torch.ones(2, tokens, dtype=torch.bool)
    real[:, ::5] = False
    hidden = ~real[:, None, :, None]
    longer = [
        torch.nn.functional.pad(t.masked_fill(hidden, torch.nan) if k < 3 else t, (0, 0, 0, padding), value=torch.nan)
        if k in (1, 2)
        else t
        for k, t in enumerate(tensors)
    ]
    longer[5] = torch.nn.functional.pad(tensors[5], (0, padding), value=torch.nan)
    grad = torch.randn(tensors[0].shape)
    first, second = (
        values_and_gradients(
            "cpu", given, {"rows": torch.tensor([2, 0]), "key_mask": mask}, grad, dropout=DROPOUT, seed=1
        )
        for given, mask in ((tensors, real), (longer, torch.nn.functional.pad(real, (0, padding))))
    )
    for k, (a, b) in enumerate(zip(first, second)):
        if k in (2, 3):
            assert not b[:, :, tokens:].any()
            b = b[:, :, :tokens]
        assert torch.equal(a, b), k


def test_any_number_of_threads_gives_the_same_bits(backend):
    tensors, options = inputs("three_blocks")
    grad = torch.randn(tensors[0].shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = values_and_gradients(backend, tensors, options, grad, dropout=DROPOUT, seed=SEED)
        for count in (2, 3) if backend == "cpu" else (1,):
            torch.set_num_threads(count)
            again = values_and_gradients(backend, tensors, options, grad, dropout=DROPOUT, seed=SEED)
            assert all(torch.equal(a, b) for a, b in zip(again, alone))
    finally:
        torch.set_num_threads(before)
