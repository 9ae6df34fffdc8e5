"""mop_ffn where its kernels change their way: rows in many tiles, many maps, hidden rows too wide for the chip, scratch
memory that is short."""

import pytest
import torch
from judging import call_bank, check_bank
from layouts import SHARINGS

from mop_kernels import backends, testing
from mop_kernels.testing import BANKS, Bank, Shape

HALVES = [torch.float32, torch.bfloat16]

DOWN, UP = (4, 4, 4, 2, 4, 1), (2, 2, 2, 8, 12, 1)  # terms, g_in, g_out, loc_in, loc_out, rank


@pytest.fixture(autouse=True)
def not_interpreted(backend):
    if backend == "triton" and backends.interpreting():
        pytest.skip("left to a GPU: too slow in Triton's interpreter")


def bank(layers, experts, rows, **kwargs):
    return Bank(layers, experts, Shape(rows, *DOWN), Shape(rows, *UP), **kwargs)


def test_more_rows_than_blocks_share(backend):
    """The sums over rows are over several tiles a block, then over blocks."""
    check_bank(testing.mop_inputs(bank(1, 1, 9001, maps=1), torch.float32), backend)


@pytest.mark.parametrize(("dtype", "sharing"), [(torch.float32, "no_both"), (torch.bfloat16, "mop")], ids=str)
def test_more_pairs_than_blocks(sharing, dtype, backend):
    """A block has all rows of its pair, several tiles of them, and so writes gradients that no other adds to."""
    check_bank(testing.mop_inputs(bank(2, 140, 37, maps=1), dtype, sharing=SHARINGS[sharing]), backend)


@pytest.mark.parametrize("needs", ["all", "x", "few", "biases"])
def test_many_maps(needs, backend):
    """As many as the mask of the gradients has bits for."""
    tensors = testing.mop_inputs(bank(2, 2, 5, maps=14), torch.float32)
    asked = {
        "all": [True] * len(tensors),
        "x": [k == 0 for k in range(len(tensors))],
        "few": [k in (4, len(tensors) - 4) for k in range(len(tensors))],  # down's bias, the last map's rule_in
        "biases": [t.dim() == 3 for t in tensors],
    }[needs]
    check_bank(tensors, backend, needs=asked)


def test_any_number_of_maps_without_gradients(backend):
    tensors = testing.mop_inputs(bank(2, 2, 5, maps=45), torch.float32)
    with torch.no_grad():
        together = call_bank(tensors, backend=backend)
        for k, y in enumerate(together):
            (alone,) = call_bank([*tensors[:5], *tensors[5 + 4 * k : 9 + 4 * k]], backend=backend)
            torch.testing.assert_close(y, alone)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_hidden_rows_too_wide_for_the_chip(dtype, backend):
    wide = Bank(2, 1, Shape(3, 2, 2, 2, 4, 6000, 1), Shape(3, 3, 2, 2, 6000, 8, 1))
    check_bank(testing.mop_inputs(wide, dtype), backend, activation="gelu")


@pytest.mark.parametrize("room", [16, 5000])
@pytest.mark.parametrize(
    ("which", "dtype"),
    [(which, torch.float32) for which in ("small", "odd", "reading_b", "wide", "high_rank")]
    + [("odd", torch.bfloat16)],
    ids=str,
)
def test_little_scratch_memory(room, which, dtype, backend, monkeypatch):
    """Bytes of shared memory that leave room for few rows and narrow chunks, or for nothing."""
    if backend != "cuda" or not backends.runs_on_cpu(backend):
        pytest.skip("a GPU has what it has")
    monkeypatch.setenv("MOP_KERNELS_EMULATED_SHARED_BYTES", str(room))
    check_bank(testing.mop_inputs(BANKS[which], dtype), backend)


@pytest.mark.parametrize("which", ["small", "reading_b", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_have_the_same_bits_on_any_gpu(which, dtype, backend, monkeypatch):
    """Rows per tile, chunks and blocks depend on the multiprocessors and their memory; the order of sums does not."""
    if backend != "cuda" or not backends.runs_on_cpu(backend):
        pytest.skip("a GPU has what it has")
    tensors = testing.mop_inputs(BANKS[which]._replace(layers=1), dtype)
    found = []
    gpus = [(132, 227), (108, 163), (3, 99)]
    gpus += [(132, 0)] if dtype == torch.float32 else []  # scratch in the GPU's memory, as where hidden rows are wide
    for multiprocessors, room in gpus:
        monkeypatch.setenv("MOP_KERNELS_EMULATED_MULTIPROCESSORS", str(multiprocessors))
        monkeypatch.setenv("MOP_KERNELS_EMULATED_SHARED_BYTES", str(room * 1024))
        found.append(call_bank(tensors, backend=backend))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


EIGHTS = {
    "fewer than a tile": Bank(2, 2, Shape(5, 3, 5, 3, 24, 8, 2), Shape(5, 7, 3, 11, 8, 40, 1), maps=3),
    "more than a tile": Bank(1, 2, Shape(33, 10, 19, 18, 8, 8, 2), Shape(33, 5, 18, 17, 8, 16, 4)),
    "whole tiles": Bank(1, 1, Shape(16, 16, 16, 16, 32, 16, 1), Shape(16, 16, 16, 16, 16, 32, 1), maps=1),
    "one row": Bank(1, 2, Shape(1, 2, 2, 2, 8, 8, 1), Shape(1, 2, 2, 2, 8, 24, 1)),
}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("which", EIGHTS)
def test_locals_of_whole_eights(which, half, backend):
    """The CUDA kernels take the tensor cores, in tiles of 16 x 16 x 16, of which parts are outside."""
    if backend == "cpu" and half == torch.float16:
        pytest.skip("the CPU kernels take no float16")
    tensors = testing.mop_inputs(EIGHTS[which], half)
    check_bank(tensors, backend, activation="gelu")
    check_bank(tensors, backend, experts=torch.tensor([0]))
    check_bank(testing.mop_inputs(EIGHTS[which], half, bias=False), backend)


@pytest.mark.parametrize("multiprocessors", [1, 1000])
def test_locals_of_whole_eights_in_many_and_in_few_blocks(multiprocessors, backend, monkeypatch):
    if backend != "cuda" or not backends.runs_on_cpu(backend):
        pytest.skip("a GPU has what it has")
    monkeypatch.setenv("MOP_KERNELS_EMULATED_MULTIPROCESSORS", str(multiprocessors))
    monkeypatch.setenv("MOP_KERNELS_EMULATED_SHARED_BYTES", str(24 * 1024))
    check_bank(testing.mop_inputs(EIGHTS["fewer than a tile"], torch.bfloat16), backend)
