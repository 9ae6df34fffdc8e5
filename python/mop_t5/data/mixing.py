"""Temperature mixing: which rows make up each batch when scenarios differ in size.

A row's scenario is drawn with P(t) proportional to n_t^(1/T): T = 1 keeps the corpus as it is, larger T raises the
small scenarios, T -> infinity draws all equally often (the MOP paper uses T = 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

BATCHINGS = ("homogeneous", "mixed")


def temperature_weights(sizes: Sequence[int], temperature: float) -> torch.Tensor:
    """`(n_t / sum n)^(1/T)`, normalised: a float64 tensor `[len(sizes)]` that sums to one."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}. 1 keeps the sizes, 2 is the paper's.")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must hold at least one row for every scenario, got {list(sizes)}.")
    total = sum(sizes)
    weights = torch.tensor([(size / total) ** (1.0 / temperature) for size in sizes], dtype=torch.float64)
    if not weights.sum() > 0:
        raise ValueError(f"temperature {temperature} is so small that no scenario would be drawn. 1 keeps the sizes.")
    return weights / weights.sum()


class TemperatureBatchSampler(Sampler[list[int]]):
    """Batches of row indices, drawn with replacement; one epoch is `ceil(rows / batch_size)` of them.

    `batching="homogeneous"`: all rows of a batch are of one scenario; the batches are those of HyperFormer's sampler,
    bit for bit. `"mixed"`: every row draws its own scenario. `num_batches`: the length of one iteration, which goes on
    with the epochs that follow where it is longer than one; None for one epoch.

    The random numbers of an epoch come from one generator seeded with `seed + epoch`, so the batches are one stream
    that nothing else changes. Under data parallel let every process take its share of it: of R processes, process r
    takes batches r, r + R, r + 2R, ... (accelerate's `prepare` of a DataLoader does that, and so does
    `mop_t5.training.train`). Then no batch is used twice, processes may have different scenarios at one step, and R
    processes draw what one process draws that accumulates R batches.
    """

    drop_last = True  # all batches are full; accelerate must not fill up the last round with the first batches again

    def __init__(
        self,
        scenario_ids: Sequence[int],
        batch_size: int,
        *,
        temperature: float = 2.0,
        batching: str = "homogeneous",
        seed: int = 0,
        num_batches: int | None = None,
    ):
        if batching not in BATCHINGS:
            raise ValueError(f"batching must be one of {BATCHINGS}, got {batching!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, or None for one epoch; got {num_batches}.")
        ids = torch.as_tensor(scenario_ids, dtype=torch.long)
        if ids.numel() == 0 or ids.min() < 0:
            raise ValueError("scenario_ids must be a non-empty sequence of ids from 0 upwards.")
        # Scenarios without a row (an adapter may know more than this corpus) take no part in the draw.
        self._rows = [rows for s in range(int(ids.max()) + 1) if len(rows := torch.where(ids == s)[0])]
        self.sizes = [len(rows) for rows in self._rows]
        self.weights = temperature_weights(self.sizes, temperature)
        self.batch_size, self.batching, self.seed = batch_size, batching, seed
        self.epoch = 0
        self._epoch_length = math.ceil(len(ids) / batch_size)
        self._length = self._epoch_length if num_batches is None else num_batches

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration starts with; `Trainer` and data-parallel loops call this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        epochs = (self._batches_of(epoch) for epoch in itertools.count(self.epoch))
        return itertools.islice(itertools.chain.from_iterable(epochs), self._length)

    def _batches_of(self, epoch: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        mine = [rows[torch.randperm(len(rows), generator=generator)] for rows in self._rows]  # per scenario
        draws = self._epoch_length * (1 if self.batching == "homogeneous" else self.batch_size)
        scenarios = torch.multinomial(self.weights, draws, replacement=True, generator=generator)
        if self.batching == "homogeneous":
            for scenario in scenarios.tolist():
                picks = torch.randint(len(mine[scenario]), (self.batch_size,), generator=generator)
                yield mine[scenario][picks].tolist()
        else:
            for batch in scenarios.view(self._epoch_length, self.batch_size).tolist():
                yield [
                    mine[scenario][torch.randint(len(mine[scenario]), (), generator=generator)].item()
                    for scenario in batch
                ]
