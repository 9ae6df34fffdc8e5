"""local_linear: values and all gradients, on every backend, within the error budget."""

import pytest
import torch
from judging import check
from layouts import LAYOUTS

from mop_kernels import functional, ops, reference, testing

# (rows, groups, width_in, width_out): both orders of narrow and wide, parts of a register, a deep and a wide local
SIZES = [
    (70, 4, 192, 4),
    (70, 4, 4, 192),
    (33, 1, 40, 1),
    (33, 1, 1, 40),
    (300, 3, 130, 3),
    (5, 2, 7, 9),
    (40, 1, 200, 33),
    (700, 16, 8, 20),
    (1, 1, 1, 1),
    (0, 3, 5, 4),
]


def inputs(size, dtype):
    rows, groups, width_in, width_out = size
    g = torch.Generator().manual_seed(3)
    shapes = (rows, groups * width_in), (width_in, width_out), (groups * width_out,)
    return [testing.normal(g, dtype, *shape) for shape in shapes]


def by_kron(x, local, bias=None):
    y = x @ torch.kron(torch.eye(x.shape[-1] // local.shape[0], dtype=x.dtype, device=x.device), local)
    return y if bias is None else y + bias


def judge(backend, tensors, layout="contiguous"):
    def ours(*t):
        return functional.local_linear(*t, backend=backend)

    check((ours, reference.local_linear, by_kron), tensors, (layout,))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, dtype, backend):
    if dtype != torch.float64:
        return judge(backend, inputs(size, dtype))
    # the truth is rounded, too, and depths of 200 leave more than its ulps
    tensors = inputs(size, dtype)
    grad = torch.randn(by_kron(*tensors).shape, dtype=dtype)
    ours = testing.value_and_gradients(lambda *t: functional.local_linear(*t, backend=backend), tensors, [grad])
    true = testing.value_and_gradients(by_kron, tensors, [grad])
    for found, expected in zip([*ours[0], *ours[1]], [*true[0], *true[1]], strict=True):
        assert testing.relative_error(found, expected) < 1e-13


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_without_bias(size, backend):
    judge(backend, inputs(size, torch.float32)[:2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, backend):
    judge(backend, [LAYOUTS[layout](t) for t in inputs(SIZES[1], torch.float32)])
    judge(backend, inputs(SIZES[0], torch.float32), layout)


def test_leading_dims(backend):
    x, *factors = inputs((24, 4, 6, 5), torch.float32)
    flat = functional.local_linear(x, *factors, backend=backend)
    shaped = functional.local_linear(x.view(2, 3, 4, -1), *factors, backend=backend)
    assert shaped.shape == (2, 3, 4, 20)
    assert torch.equal(shaped.flatten(0, 2), flat)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_asked(needs, backend):
    tensors = inputs(SIZES[4], torch.float32)
    grad = torch.randn(300, 9)

    def gradients(needs):
        return testing.value_and_gradients(
            lambda *t: functional.local_linear(*t, backend=backend), tensors, [grad], needs
        )[1]

    together = gradients((True, True, True))
    for asked, alone, full in zip(needs, gradients(needs), together, strict=True):
        assert (alone is None) if not asked else torch.equal(alone, full)


def test_any_number_of_threads_gives_the_same_bits():
    tensors = inputs((900, 4, 48, 4), torch.float32)
    grad = torch.randn(900, 16)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, gradients = testing.value_and_gradients(
                lambda *t: functional.local_linear(*t, backend="cpu"), tensors, [grad]
            )
            found.append([*y, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("name", ["local_linear", "local_linear_backward"])
def test_opcheck(name, backend):
    x, local, bias = inputs(SIZES[4], torch.float32)
    arguments = [torch.randn(300, 9), x, local, 0b111] if name.endswith("backward") else [x, local, bias]
    torch.library.opcheck(ops.get(name, backend), arguments)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_derivatives_of_any_order(dtype, backend):
    tensors = [t.requires_grad_() for t in inputs((3, 2, 4, 3), dtype)]

    def function(*t):
        return functional.local_linear(*t, backend=backend)

    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("dims", [(0, None, None), (0, 0, 0), (None, 0, None)], ids=str)
def test_vmap(dims, dtype, backend):
    x, local, bias = inputs((3, 2, 4, 3), dtype)
    batch = [t if d is None else torch.stack([t, 2 * t]) for t, d in zip((x, local, bias), dims)]
    found = torch.vmap(lambda *t: functional.local_linear(*t, backend=backend), dims)(*batch)
    for k in range(2):
        torch.testing.assert_close(found[k], by_kron(*(t if d is None else t[k] for t, d in zip(batch, dims))))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((2, 7), (3, 2)), "x"),
        (((), (3, 2)), "x"),
        (((2, 6), (1, 3, 2)), "local"),
        (((2, 6), (0, 2)), "local"),
        (((2, 6), (3, 2), (5,)), "bias"),
    ],
    ids=str,
)
def test_wrong_shapes(shapes, named):
    with pytest.raises(ValueError, match=named):
        functional.local_linear(*(torch.zeros(shape) for shape in shapes))
