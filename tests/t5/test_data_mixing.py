"""Temperature mixing, against golden batches of the public sampler and by counting."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
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
        ({"batching": "sorted"}, "batching must be one of .*got 'sorted'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"num_batches": 0}, "num_batches must be at least 1; got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"scenario_ids": []}, "scenario_ids must be a non-empty sequence"),
        ({"scenario_ids": [0, -1]}, "scenario_ids must be a non-empty sequence of ids from 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
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
