"""Draw the rows of each batch, and mix scenarios of different sizes by a temperature.

The scenario of a row is drawn with P(t) proportional to n_t^(1/T). T = 1 keeps the shares of the corpus. A larger T
draws small scenarios more often, and T -> infinity draws all scenarios equally often. The MOP paper uses T = 2.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from mop_t5.checks import check_choice, check_int

BATCHINGS = ("homogeneous", "mixed")


def temperature_weights(sizes: Sequence[int], temperature: float) -> torch.Tensor:
    """Return the normalised probabilities `(n_t / sum n)^(1/T)` as a float64 tensor (len(sizes),).

    Raises:
        ValueError: A size is below 1, or the temperature is not above 0 or too small.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}. 1 keeps the sizes, 2 is the paper's.")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1, one size per scenario; got {list(sizes)}.")
    total = sum(sizes)
    weights = torch.tensor([(size / total) ** (1.0 / temperature) for size in sizes], dtype=torch.float64)
    if not weights.sum() > 0:
        raise ValueError(f"temperature {temperature} is so small that no scenario would be drawn. 1 keeps the sizes.")
    return weights / weights.sum()


class TemperatureBatchSampler(Sampler[list[int]]):
    """Sampler of batches of row indices, drawn with replacement. One epoch has `ceil(rows / batch_size)` batches.

    The random numbers of an epoch come from one generator with the seed `seed + epoch`, so the batches are one stream
    that nothing else changes. Under data parallel, let every process take its share of the stream: of R processes,
    process r takes batches r, r + R, r + 2R, ... (accelerate's `prepare` of a DataLoader and `mop_t5.training.train` do
    so). Then no batch is used twice, and processes may have different scenarios at the same step. R processes draw the
    same batches as one process that accumulates R batches.

    Args:
        scenario_ids: Scenario id of each row.
        batch_size: Number of rows of a batch.
        temperature: Temperature T of the mixing.
        batching: "homogeneous" for batches of one scenario, which are equal to the batches of HyperFormer's sampler bit
            for bit. "mixed" to draw the scenario of every row.
        seed: Seed of the first epoch.
        num_batches: Number of batches of one iteration. An iteration that is longer than an epoch continues with the
            next epochs. None for one epoch.

    Raises:
        TypeError: `batch_size` or `num_batches` is no int.
        ValueError: An argument is out of range.
    """

    drop_last = True  # all batches are full; without it accelerate would repeat the first batches in the last round

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
        check_choice("batching", batching, BATCHINGS)
        check_int("batch_size", batch_size, 1)
        if num_batches is not None:
            check_int("num_batches", num_batches, 1)
        ids = torch.as_tensor(scenario_ids, dtype=torch.long)
        if ids.numel() == 0 or ids.min() < 0:
            raise ValueError("scenario_ids must be a non-empty sequence of ids from 0 upwards.")
        # a scenario without a row is never drawn; an adapter may know more scenarios than this corpus
        self._rows = [rows for s in range(int(ids.max()) + 1) if len(rows := torch.where(ids == s)[0])]
        self.sizes = [len(rows) for rows in self._rows]
        self.weights = temperature_weights(self.sizes, temperature)
        self.batch_size, self.batching, self.seed, self.epoch = batch_size, batching, seed, 0
        self._epoch_length = math.ceil(len(ids) / batch_size)
        self._length = self._epoch_length if num_batches is None else num_batches

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the first epoch of the next iteration. `Trainer` and data-parallel loops call this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        epochs = (self._batches_of(epoch) for epoch in itertools.count(self.epoch))
        return itertools.islice(itertools.chain.from_iterable(epochs), self._length)

    def _batches_of(self, epoch: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        rows = [own[torch.randperm(len(own), generator=generator)] for own in self._rows]
        draws = self._epoch_length * (1 if self.batching == "homogeneous" else self.batch_size)
        scenarios = torch.multinomial(self.weights, draws, replacement=True, generator=generator)
        if self.batching == "homogeneous":
            for scenario in scenarios.tolist():
                picks = torch.randint(self.sizes[scenario], (self.batch_size,), generator=generator)
                yield rows[scenario][picks].tolist()
        else:
            for batch in scenarios.view(self._epoch_length, self.batch_size).tolist():
                drawn = ((s, torch.randint(self.sizes[s], (), generator=generator)) for s in batch)
                yield [rows[scenario][pick].item() for scenario, pick in drawn]
