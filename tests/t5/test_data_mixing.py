"""Temperature mixing, against golden batches of the public sampler and by counting. Batches by length, likewise."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from errors import raises
from mop_t5.data.mixing import TemperatureBatchSampler, temperature_weights
from safetensors.torch import load_file

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "temperature_sampler.safetensors")
SIZES = [50, 10, 30]


def ids_of(sizes):
    return [scenario for scenario, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("temperature", [1, 2, 5, 10])
def test_weights_of_the_paper(temperature):
    torch.testing.assert_close(
        temperature_weights(GOLDEN["train_sizes"].tolist(), temperature),
        GOLDEN[f"weights_T{temperature}"],
        rtol=1e-14,
        atol=0,
    )


def test_homogeneous_batches_are_golden_bit_for_bit():
    sampler = TemperatureBatchSampler(ids_of(SIZES), 4, temperature=2, seed=7)
    sampler.set_epoch(3)
    batches = list(sampler)
    assert batches == GOLDEN["small.rep1.rank0.batches"].tolist()
    assert len(batches) == len(sampler)
    assert list(sampler) == batches  # iterating again repeats the epoch
    sampler.set_epoch(4)
    assert list(sampler) != batches


def test_rows_may_stand_in_any_order():
    ids = [2, 0, 1, 0, 0, 2, 1, 0]
    for batch in TemperatureBatchSampler(ids, 2, seed=1):
        assert len({ids[i] for i in batch}) == 1


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
def test_shares_follow_the_temperature(batching):
    ids = ids_of([800, 200, 10])
    sampler = TemperatureBatchSampler(ids, 8, temperature=2, batching=batching)
    drawn = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        drawn.update(ids[i] for batch in sampler for i in batch)
    total = sum(drawn.values())
    for scenario, weight in enumerate(temperature_weights([800, 200, 10], 2).tolist()):
        assert drawn[scenario] / total == pytest.approx(weight, abs=0.03)


def test_mixed_batches_mix():
    ids = ids_of(SIZES)
    batches = list(TemperatureBatchSampler(ids, 8, batching="mixed"))
    assert sum(len({ids[i] for i in batch}) > 1 for batch in batches) > len(batches) / 2
    assert all(len(batch) == 8 for batch in batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batching": "sorted"}, ("batching", "'sorted'")),
        ({"batch_size": 0}, ("batch_size", "1", "0")),
        ({"num_batches": 0}, ("num_batches", "1", "0")),
        ({"temperature": 0}, ("temperature", "0", "0")),
        ({"scenario_ids": []}, ("scenario_ids", "non-empty")),
        ({"scenario_ids": [0, -1]}, ("scenario_ids", "non-empty", "0")),
        ({"lengths": [(3, 1)] * 89}, ("lengths", "90", "89")),
        ({"batch_size": None}, ("batch_size=None", "tokens_per_batch=None")),
        ({"tokens_per_batch": 9}, ("batch_size=4", "tokens_per_batch=9")),
        ({"batch_size": None, "tokens_per_batch": 9}, ("tokens_per_batch", "lengths")),
        ({"batch_size": None, "tokens_per_batch": 0}, ("tokens_per_batch", "1", "0")),
        (
            {"batch_size": None, "tokens_per_batch": 9, "lengths": [*[(3, 1)] * 89, (8, 2)]},
            ("tokens_per_batch", "10", "row 89", "8", "2", "9"),
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with raises(ValueError, *message):
        TemperatureBatchSampler(**({"scenario_ids": ids_of(SIZES), "batch_size": 4} | arguments))


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
def test_a_long_iteration_goes_on_with_the_next_epochs(batching):
    epochs = TemperatureBatchSampler(ids_of(SIZES), 4, batching=batching, seed=7)
    expected = list(epochs)
    epochs.set_epoch(1)
    expected += list(epochs)
    long = TemperatureBatchSampler(ids_of(SIZES), 4, batching=batching, seed=7, num_batches=40)
    assert list(long) == expected[:40]
    assert len(long) == 40 < len(expected)
    longer = TemperatureBatchSampler(ids_of(SIZES), 4, batching=batching, seed=7, num_batches=45)
    assert list(longer)[:40] == list(long)


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_one_stream(batching, processes):
    """Of 23 batches every process gets as many; what is left over is left out, and none comes twice."""
    stream = TemperatureBatchSampler(ids_of(SIZES), 4, batching=batching, seed=7)
    batches = list(stream)
    assert len(batches) == 23
    shares = [list(BatchSamplerShard(stream, processes, rank)) for rank in range(processes)]
    for rank, share in enumerate(shares):
        assert share == batches[rank::processes][: 23 // processes]
    if batching == "homogeneous":
        ids = ids_of(SIZES)
        assert any(len({ids[share[step][0]] for share in shares}) > 1 for step in range(23 // processes))


_GENERATOR = torch.Generator().manual_seed(0)
_SOURCES = torch.randint(1, 60, (90,), generator=_GENERATOR)
LENGTHS = list(zip(_SOURCES.tolist(), (1 + _SOURCES // 2 + torch.randint(6, (90,), generator=_GENERATOR)).tolist()))
BY_LENGTH = [{"batch_size": 4}, {"batch_size": None, "tokens_per_batch": 300}]


def by_length(**changes):
    return TemperatureBatchSampler(**({"scenario_ids": ids_of(SIZES), "seed": 7, "lengths": LENGTHS} | changes))


def padded(batch):
    """The tokens of a batch with its padding."""
    return len(batch) * sum(max(lengths) for lengths in zip(*(LENGTHS[row] for row in batch)))


def counted(batches):
    return Counter(row for batch in batches for row in batch)


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
@pytest.mark.parametrize("size", BY_LENGTH)
def test_batches_by_length_have_the_rows_of_each_epoch_as_often_with_less_padding(batching, size):
    """With a budget every row is a draw, as in batches of one row."""
    sampler = by_length(batching=batching, **size)
    plain = TemperatureBatchSampler(ids_of(SIZES), size["batch_size"] or 1, batching=batching, seed=7)
    for epoch in range(4):
        sampler.set_epoch(epoch), plain.set_epoch(epoch)
        batches = list(sampler)
        assert counted(batches) == counted(plain)
        assert len(sampler) == len(batches)
        if size["batch_size"]:
            assert {len(batch) for batch in batches} == {4}
            assert sum(map(padded, batches)) < 0.8 * sum(map(padded, plain))
    if batching == "homogeneous":
        assert all(len({ids_of(SIZES)[row] for row in batch}) == 1 for batch in batches)
    else:
        assert any(len({ids_of(SIZES)[row] for row in batch}) > 1 for batch in batches)


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
def test_a_budget_is_never_passed_and_always_used(batching):
    sampler = by_length(batching=batching, batch_size=None, tokens_per_batch=300, num_batches=200)
    batches = list(sampler)
    assert max(map(padded, batches)) <= 300
    assert min(map(len, batches)) < 4 < max(map(len, batches))
    groups = {}
    for batch in sampler._batches_of(0):  # no batch could take the first row of the next longer batch of its group
        groups.setdefault(ids_of(SIZES)[batch[0]] if batching == "homogeneous" else 0, []).append(batch)
    for group in groups.values():
        group.sort(key=lambda batch: [LENGTHS[row] for row in batch])
        for batch, longer in itertools.pairwise(group):
            assert LENGTHS[batch[-1]] <= LENGTHS[longer[0]]
            assert padded([*batch, longer[0]]) > 300
    alone = by_length(batch_size=None, tokens_per_batch=max(sum(one) for one in LENGTHS))
    assert max(map(padded, alone)) == max(sum(one) for one in LENGTHS)


@pytest.mark.parametrize("size", BY_LENGTH)
def test_shares_by_length_follow_the_temperature_and_all_rows_of_a_scenario_are_alike(size):
    drawn = counted(by_length(num_batches=6000, **size))
    total, start = sum(drawn.values()), 0
    for weight, count in zip(temperature_weights(SIZES, 2).tolist(), SIZES):
        rows = [drawn[row] / total for row in range(start, start + count)]
        assert sum(rows) == pytest.approx(weight, abs=0.02)
        assert rows == pytest.approx([weight / count] * count, rel=0.2)
        start += count


@pytest.mark.parametrize("size", BY_LENGTH)
def test_batches_by_length_come_in_random_order(size):
    batches = list(by_length(num_batches=500, **size))
    longest = torch.tensor([[max(LENGTHS[row][0] for row in batch), place] for place, batch in enumerate(batches)])
    assert abs(torch.corrcoef(longest.double().T)[0, 1]) < 0.15
    assert torch.corrcoef(torch.stack([longest[:-1, 0], longest[1:, 0]]).double())[0, 1] < 0.15
    assert batches == list(by_length(num_batches=500, **size))  # by the seed alone
    assert batches != list(by_length(num_batches=500, **size | {"seed": 8}))


@pytest.mark.parametrize("size", BY_LENGTH)
@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
def test_iterations_by_length_go_on_and_processes_share_them(size, batching):
    one = by_length(batching=batching, **size)
    expected = list(one)
    one.set_epoch(1)
    expected += list(one)
    count = len(expected) - 3
    long = by_length(batching=batching, num_batches=count, **size)
    assert list(long) == expected[:count]
    assert long.rows_drawn(count) == [sum(map(len, expected[:n])) for n in range(count + 1)]
    shares = [list(BatchSamplerShard(long, 2, rank)) for rank in range(2)]
    assert [batch for pair in zip(*shares) for batch in pair] == expected[: count // 2 * 2]
    assert {len(BatchSamplerShard(long, 2, rank)) for rank in range(2)} == {count // 2}
