"""Temperature mixing: which rows make up each batch when scenarios differ in size.

A row's scenario is drawn with P(t) proportional to n_t^(1/T): T = 1 keeps the corpus as it is, larger T raises the
small scenarios, T -> infinity draws all equally often (the MOP paper uses T = 2).
"""

from __future__ import annotations

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
    return weights / weights.sum()


class TemperatureBatchSampler(Sampler[list[int]]):
    """Batches of row indices, with replacement, of one epoch: `ceil(rows / batch_size) // num_replicas` batches.

    `batching="homogeneous"`: all rows of a batch are of one scenario, the same on every rank, as in HyperFormer; the
    batches are those of its sampler, bit for bit. `"mixed"`: every row draws its own scenario.

    The random numbers of an epoch come from one generator seeded with `seed + epoch`; all ranks draw the same numbers
    and use them on disjoint parts of each scenario, so no communication is needed.
    """

    def __init__(
        self,
        scenario_ids: Sequence[int],
        batch_size: int,
        *,
        temperature: float = 2.0,
        batching: str = "homogeneous",
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ):
        if batching not in BATCHINGS:
            raise ValueError(f"batching must be one of {BATCHINGS}, got {batching!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, num_replicas) = [0, {num_replicas}), got {rank}.")
        ids = torch.as_tensor(scenario_ids, dtype=torch.long)
        if ids.numel() == 0 or ids.min() < 0:
            raise ValueError("scenario_ids must be a non-empty sequence of ids from 0 upwards.")
        # Scenarios without a row (an adapter may know more than this corpus) take no part in the draw.
        self._rows = [rows for s in range(int(ids.max()) + 1) if len(rows := torch.where(ids == s)[0])]
        self.sizes = [len(rows) for rows in self._rows]
        if min(self.sizes) < num_replicas:
            raise ValueError(
                f"every scenario needs at least one row for each of {num_replicas} replicas, got sizes {self.sizes}."
            )
        self.weights = temperature_weights(self.sizes, temperature)
        self.batch_size, self.batching, self.seed = batch_size, batching, seed
        self.num_replicas, self.rank, self.epoch = num_replicas, rank, 0
        self._length = math.ceil(len(ids) / batch_size) // num_replicas
        if self._length == 0:
            raise ValueError(
                f"{len(ids)} rows in batches of {batch_size} give no batch for each of {num_replicas} replicas. "
                "Lower batch_size."
            )

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of the next iteration; `Trainer` and data-parallel loops call this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        mine = []  # per scenario, the rows this rank may draw
        for rows, size in zip(self._rows, self.sizes):
            order = torch.randperm(size, generator=generator)
            mine.append(rows[order[self.rank : size // self.num_replicas * self.num_replicas : self.num_replicas]])
        draws = self._length if self.batching == "homogeneous" else self._length * self.batch_size
        scenarios = torch.multinomial(self.weights, draws, replacement=True, generator=generator)
        if self.batching == "homogeneous":
            for scenario in scenarios.tolist():
                picks = torch.randint(len(mine[scenario]), (self.batch_size,), generator=generator)
                yield mine[scenario][picks].tolist()
        else:
            for batch in scenarios.view(self._length, self.batch_size).tolist():
                yield [
                    mine[scenario][torch.randint(len(mine[scenario]), (), generator=generator)].item()
                    for scenario in batch
                ]
