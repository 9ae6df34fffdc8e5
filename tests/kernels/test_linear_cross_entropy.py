"""linear_cross_entropy: values and gradients against the truth, labels that do not count, and memory."""

import functools
import math
import weakref

import pytest
import torch
from judging import check
from layouts import LAYOUTS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mop_kernels as mk
from mop_kernels import linear_cross_entropy_pieces, step_reference, testing

PIECE = 1024
SIZES = {  # rows, width, classes
    "one": (1, 1, 1),
    "odd": (7, 5, 11),
    "a_piece": (4, 6, PIECE),
    "a_class_more": (4, 6, PIECE + 1),
    "three_pieces": (9, 33, 2 * PIECE + 437),
    "no_rows": (0, 5, 11),
}


def inputs(name, dtype):
    rows, width, classes = SIZES[name]
    g = torch.Generator().manual_seed(3)
    return [testing.normal(g, dtype, rows, width), testing.normal(g, dtype, classes, width)]


def labels_of(rows, classes, ignored=True):
    labels = testing.integers(torch.Generator().manual_seed(5), classes, torch.int64, rows)
    if rows:
        labels[-1] = classes - 1
    if ignored:
        labels[1::3] = -100
    return labels


def truth(x, weight, labels, smoothing=0.0, ignored=-100):
    """Return the sum over the rows that count, by the definition."""
    logs = (x @ weight.T) - torch.logsumexp(x @ weight.T, 1, keepdim=True)
    places = (labels != ignored).nonzero()[:, 0]
    own = logs[places, labels[places]]
    return -(1 - smoothing) * own.sum() - smoothing * logs[places].mean(1).sum()


def judge(backend, tensors, labels, smoothing=0.0):
    def call(*t):
        options = {"label_smoothing": smoothing, "reduction": "sum"}
        return mk.linear_cross_entropy(*t, labels, **options, backend=backend)

    def plain(*t):
        return step_reference.linear_cross_entropy(*t, labels, smoothing, -100)[0]

    check((call, plain, functools.partial(truth, labels=labels, smoothing=smoothing)), tensors)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", SIZES)
def test_named_sizes(name, smoothing, dtype, backend):
    rows, _, classes = SIZES[name]
    judge(backend, inputs(name, dtype), labels_of(rows, classes), smoothing)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(layout, backend):
    rows, _, classes = SIZES["three_pieces"]
    tensors = [LAYOUTS[layout](t) for t in inputs("three_pieces", torch.float32)]
    judge(backend, tensors, labels_of(2 * rows, classes)[::2], 0.1)


@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("scale", [1, 30])
def test_the_largest_logit_moves_from_piece_to_piece(scale, order, backend):
    x, weight = inputs("three_pieces", torch.float32)
    ramp = torch.linspace(0, scale, len(weight)).unsqueeze(1)
    weight = weight * (ramp if order == "rising" else ramp.flip(0))
    judge(backend, [x, weight], labels_of(len(x), len(weight)))


def test_a_certain_label_has_a_small_loss_and_a_small_gradient(backend):
    """Of a trained model: the loss is the logarithm of a sum near one, and W_label nearly cancels."""
    x, weight = inputs("three_pieces", torch.float32)
    labels = torch.arange(len(x)) * 150
    x = weight[labels] * 3
    x.requires_grad_()
    loss = mk.linear_cross_entropy(x, weight, labels, reduction="sum", backend=backend)
    (gradient,) = torch.autograd.grad(loss, x)
    exact = x.detach().double().requires_grad_()
    expected = truth(exact, weight.double(), labels)
    (of_exact,) = torch.autograd.grad(expected, exact)
    assert 0 <= expected.item() < 1e-3
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert (gradient - of_exact).abs().max() <= 2e-6


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_reductions_are_those_of_pytorch(ignore_index, smoothing, reduction, backend, float64):
    x, weight = (t.requires_grad_() for t in inputs("odd", float64))
    labels = torch.tensor([0, ignore_index, 5, 10, ignore_index, 3 if ignore_index == 3 else 9, 1])
    options = {"ignore_index": ignore_index, "label_smoothing": smoothing, "reduction": reduction}
    found = mk.linear_cross_entropy(x, weight, labels, **options, backend=backend)
    expected = torch.nn.functional.cross_entropy(x @ weight.T, labels, **options)
    torch.testing.assert_close(found, expected)
    scale = torch.tensor(3.0, dtype=float64)
    for a, e in zip(
        torch.autograd.grad(found * scale, (x, weight)), torch.autograd.grad(expected * scale, (x, weight))
    ):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("rows", [0, 7])
def test_without_a_label_that_counts_the_gradient_is_zero(rows, backend):
    """As F.cross_entropy: the sum is 0, the mean NaN, and no gradient is NaN."""
    x, weight = inputs("odd", torch.float32)
    x, labels = x[:rows].requires_grad_(), torch.full((rows,), -100)
    for reduction, value in {"sum": 0.0, "mean": math.nan}.items():
        loss = mk.linear_cross_entropy(x, weight, labels, reduction=reduction, backend=backend)
        expected = torch.nn.functional.cross_entropy(x @ weight.T, labels, reduction=reduction)
        assert loss.item() == pytest.approx(value, nan_ok=True)
        assert expected.item() == pytest.approx(value, nan_ok=True)
        assert not torch.autograd.grad(loss, x)[0].any()


def test_an_ignored_row_may_hold_anything(backend):
    x, weight = inputs("odd", torch.float32)
    labels = labels_of(*SIZES["odd"][::2])
    expected = mk.linear_cross_entropy(x, weight, labels, backend=backend)
    x[labels == -100] = math.nan
    assert torch.equal(mk.linear_cross_entropy(x, weight, labels, backend=backend), expected)


@pytest.mark.parametrize("special", [math.nan, math.inf, 1e38])
def test_special_numbers_give_nan_as_in_pytorch(special, backend):
    """1e38: a logit is infinite."""
    x, weight = inputs("three_pieces", torch.float32)
    weight[1500] = special
    x[:, 0] = x[:, 0].abs() + 5
    labels = labels_of(len(x), len(weight), ignored=False)
    leaf = x.requires_grad_()
    loss = mk.linear_cross_entropy(leaf, weight, labels, backend=backend)
    assert torch.nn.functional.cross_entropy(x @ weight.T, labels).isnan()
    assert loss.isnan()
    assert torch.autograd.grad(loss, leaf)[0].isnan().any()


# The pieces: their memory, their products, and the form for a GPU.


class Allocations(TorchDispatchMode):
    """The peak of the bytes of the storages that operations make, and the rows of all products."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.product_rows = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given:
                self._add(t.untyped_storage().nbytes())
                weakref.finalize(t, self._add, -t.untyped_storage().nbytes())
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.product_rows.add(args[0].shape[0])
        return out

    def _add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_one_piece_of_logits(dtype, smoothing):
    rows, width, classes = 64, 24, 30 * PIECE + 7
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(classes, width).to(dtype)
    labels = torch.randint(classes, (rows,))
    labels[::4] = -100
    with Allocations() as allocations:
        loss, gradient = linear_cross_entropy_pieces.forward(x, weight, labels, smoothing, -100)
    counted = 48
    piece, hidden = counted * PIECE * 4, rows * width * 4
    of_weight = 0 if dtype == torch.float32 else PIECE * width * 4  # one piece, cast to float32
    assert piece < allocations.peak < piece + of_weight + 6 * hidden < rows * classes * 4 / 20
    assert allocations.product_rows == {counted}
    assert gradient.untyped_storage().nbytes() == gradient.numel() * gradient.itemsize
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_form_for_a_gpu(dtype):
    """Products of 16-bit tensors are summed in float32, and the host waits for no number."""
    x, weight = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((700, 16), (40_000, 16)))
    labels = torch.empty(700, dtype=torch.int64, device="meta")
    loss, gradient = linear_cross_entropy_pieces.forward(x, weight, labels, 0.1, -100)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert (gradient.shape, gradient.dtype) == (x.shape, dtype)


def test_pieces_of_a_gpu_give_the_same_numbers(monkeypatch):
    """Ignored rows stay there, in the products, with any valid label."""
    x, weight = inputs("three_pieces", torch.float64)
    labels = labels_of(len(x), len(weight))
    expected = linear_cross_entropy_pieces.forward(x, weight, labels, 0.1, -100)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    found = linear_cross_entropy_pieces.forward(x, weight, labels, 0.1, -100)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
