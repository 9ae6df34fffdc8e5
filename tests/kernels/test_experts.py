"""mop_ffn(experts=...): a subset, in any order; the others get zero gradients."""

import pytest
import torch
from test_mop_ffn import call, check

from mop_kernels import testing
from mop_kernels.testing import SHARINGS, Bank, Shape

BANK = Bank(2, 5, Shape(6, 4, 4, 4, 6, 4, 1), Shape(6, 2, 2, 2, 8, 9, 2))
SUBSETS = ([3], [4, 0], [2, 0, 4, 1], [4, 3, 2, 1, 0])


@pytest.mark.parametrize("chosen", SUBSETS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_values_and_gradients(sharing, chosen, backend):
    tensors = testing.mop_inputs(BANK, torch.float32, sharing=SHARINGS[sharing])
    check(tensors, backend, experts=torch.tensor(chosen))


@pytest.mark.parametrize("chosen", SUBSETS)
def test_dtypes_and_full_rule(chosen, dtype, backend):
    check(testing.mop_inputs(BANK, dtype), backend, experts=torch.tensor(chosen))
    check(testing.mop_inputs(BANK, dtype, full_rule=True), backend, experts=torch.tensor(chosen))


@pytest.mark.parametrize("sharing", ["mop", "no_both", "x_per_pair"])
def test_the_others_get_zero_gradients(sharing, backend):
    tensors = testing.mop_inputs(BANK, torch.float32, sharing=SHARINGS[sharing])
    experts = torch.tensor([3, 1])
    grads = [torch.randn(2, 2, 6, 18) for _ in range(2)]
    _, gradients = testing.value_and_gradients(lambda *t: call(t, experts=experts, backend=backend), tensors, grads)
    per_expert = [g for g in gradients if g.shape[1] == 5]
    assert per_expert
    for gradient in per_expert:
        assert torch.equal(gradient[:, [0, 2, 4]], torch.zeros_like(gradient[:, [0, 2, 4]]))
        assert gradient[:, [1, 3]].any()


def test_a_subset_gives_the_bits_of_the_whole(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)
    chosen = torch.tensor([4, 0, 2])
    for whole, part in zip(call(tensors, backend=backend), call(tensors, experts=chosen, backend=backend), strict=True):
        torch.testing.assert_close(part, whole[:, chosen], rtol=1e-5, atol=1e-5)
        if backend != "reference":  # a batched matrix product may differ with the size of its batch
            assert torch.equal(part, whole[:, chosen])


def test_an_expanded_or_strided_index(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)
    strided = torch.tensor([4, 9, 0, 9, 2, 9])[::2]
    for a, b in zip(
        call(tensors, experts=strided, backend=backend), call(tensors, experts=strided.clone(), backend=backend)
    ):
        assert torch.equal(a, b)


def test_no_expert(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)
    none = torch.tensor([], dtype=torch.int64)
    outputs, gradients = testing.value_and_gradients(
        lambda *t: call(t, experts=none, backend=backend), tensors, [torch.empty(2, 0, 6, 18)] * 2
    )
    assert [y.shape for y in outputs] == [(2, 0, 6, 18)] * 2
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_one_expert_of_one(backend):
    tensors = testing.mop_inputs(BANK._replace(experts=1), torch.float32)
    check(tensors, backend, experts=torch.tensor([0]))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_row_gradients_are_the_dense_ones(sharing, backend):
    tensors = testing.mop_inputs(BANK, torch.float32, sharing=SHARINGS[sharing])
    experts = torch.tensor([3, 1])
    grads = [torch.randn(2, 2, 6, 18) for _ in range(2)]
    dense_y, dense = testing.value_and_gradients(lambda *t: call(t, experts=experts, backend=backend), tensors, grads)
    rows_y, rows = testing.value_and_gradients(
        lambda *t: call(t, experts=experts, row_gradients=True, backend=backend), tensors, grads
    )
    assert all(torch.equal(a, b) for a, b in zip(dense_y, rows_y, strict=True))
    for d, r in zip(dense, rows, strict=True):
        assert r.is_sparse == (d.shape[1] == 5)
        if r.is_sparse:
            assert r._nnz() == d.shape[0] * 2, "only the asked rows are stored"
            r = r.to_dense()
        torch.testing.assert_close(r, d, rtol=1e-5, atol=1e-5)


def test_row_gradients_train_with_sparse_adam():
    tensors = [None if t is None else t.requires_grad_() for t in testing.mop_inputs(BANK, torch.float32)]
    own = [t for t in tensors if t is not None and t.shape[1] == 5]
    before = [t.detach().clone() for t in own]
    optimizer = torch.optim.SparseAdam(own)
    sum(y.square().sum() for y in call(tensors, experts=torch.tensor([2]), row_gradients=True)).backward()
    optimizer.step()
    for old, new in zip(before, own, strict=True):
        assert torch.equal(old[:, [0, 1, 3, 4]], new[:, [0, 1, 3, 4]])
        assert not torch.equal(old[:, 2], new[:, 2])
