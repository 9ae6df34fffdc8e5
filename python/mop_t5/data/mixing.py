"""Draw the rows of each batch, and mix scenarios of different sizes by a temperature.

The scenario of a row is drawn with P(t) proportional to n_t^(1/T). T = 1 keeps the shares of the corpus. A larger T
draws small scenarios more often, and T -> infinity draws all scenarios equally often. The MOP paper uses T = 2.

Batches by length contain the same rows, in other batches: the rows drawn for one epoch are sorted by length, cut into
batches, and the batches are shuffled. So batches by length change the padding, and not the mixing.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

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
    """Sampler of batches of row indices, drawn with replacement.

    An epoch draws about as many rows as the corpus has: `ceil(rows / batch_size)` batches, or exactly `rows` rows with
    `tokens_per_batch`. The random numbers of an epoch come from one generator with the seed `seed + epoch`, so the
    batches are one stream that nothing else changes. Under data parallel, let every process take its share of the
    stream: of R processes, process r takes batches r, r + R, r + 2R, ... (accelerate's `prepare` of a DataLoader and
    `mop_t5.training.train` do so). Then no batch is used twice, and processes may have different scenarios at the same
    step. R processes draw the same batches as one process that accumulates R batches. accelerate's `prepare` takes
    batches of different sizes, which `tokens_per_batch` makes, if the Accelerator has
    `DataLoaderConfiguration(even_batches=False)`.

    With `lengths`, rows of similar length share a batch. The rows of an epoch are drawn as without `lengths`. Then they
    are sorted by source length and target length ("homogeneous": per scenario) and cut into batches, and the batches
    are shuffled. So an epoch has the same rows equally often, and batches of short and of long rows in random order.

    Args:
        scenario_ids: Scenario id of each row.
        batch_size: Number of rows of a batch. None with `tokens_per_batch`.
        temperature: Temperature T of the mixing.
        batching: "homogeneous" for batches of one scenario, which are equal to the batches of HyperFormer's sampler bit
            for bit unless `lengths` are given. "mixed" to draw the scenario of every row.
        seed: Seed of the first epoch.
        num_batches: Number of batches of one iteration. An iteration that is longer than an epoch continues with the
            next epochs. None for one epoch.
        lengths: (source length, target length) of each row, such as `EncodedExamples.lengths`. None for batches in the
            order in which rows are drawn.
        tokens_per_batch: Largest number of tokens of a batch with its padding, rows * (longest source + longest
            target). A batch holds as many rows as fit. Requires `lengths`, and replaces `batch_size`. Each row is then
            a draw of its own, also in "homogeneous" batches, so long rows are drawn as often as short rows.

    Raises:
        TypeError: `batch_size`, `num_batches` or `tokens_per_batch` is no int.
        ValueError: An argument is out of range, not exactly one of `batch_size` and `tokens_per_batch` is given, or a
            row has more than `tokens_per_batch` tokens.
    """

    drop_last = True  # without it accelerate would repeat the first batches in the last round

    def __init__(
        self,
        scenario_ids: Sequence[int],
        batch_size: int | None = None,
        *,
        temperature: float = 2.0,
        batching: str = "homogeneous",
        seed: int = 0,
        num_batches: int | None = None,
        lengths: Sequence[tuple[int, int]] | None = None,
        tokens_per_batch: int | None = None,
    ):
        check_choice("batching", batching, BATCHINGS)
        if (batch_size is None) == (tokens_per_batch is None):
            raise ValueError(
                "exactly one of batch_size and tokens_per_batch must be given; got "
                f"batch_size={batch_size}, tokens_per_batch={tokens_per_batch}."
            )
        numbers = {"batch_size": batch_size, "num_batches": num_batches, "tokens_per_batch": tokens_per_batch}
        for name, number in numbers.items():
            if number is not None:
                check_int(name, number, 1)
        ids = torch.as_tensor(scenario_ids, dtype=torch.long)
        if ids.numel() == 0 or ids.min() < 0:
            raise ValueError("scenario_ids must be a non-empty sequence of ids from 0 upwards.")
        _check_lengths(lengths, len(ids), tokens_per_batch)
        # a scenario without a row is never drawn; an adapter may know more scenarios than this corpus
        self._rows = [rows for s in range(int(ids.max()) + 1) if len(rows := torch.where(ids == s)[0])]
        self.sizes = [len(rows) for rows in self._rows]
        self.weights = temperature_weights(self.sizes, temperature)
        self.batch_size, self.batching, self.seed, self.epoch = batch_size, batching, seed, 0
        self._lengths, self._tokens, self._num_batches = lengths, tokens_per_batch, num_batches
        self._ids: list[int] = [] if lengths is None else ids.tolist()  # needed to sort by length alone
        self._draw = batch_size or 1  # rows that are drawn at once, of one scenario in "homogeneous" batches
        self._epoch_length = math.ceil(len(ids) / self._draw)  # draws of an epoch

    def __len__(self) -> int:
        if self._num_batches is not None:
            return self._num_batches
        return self._epoch_length if self._tokens is None else len(list(self._batches_of(self.epoch)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the first epoch of the next iteration. `Trainer` and data-parallel loops call this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        if self._num_batches is None:
            return self._batches_of(self.epoch)
        return itertools.islice(self._stream(), self._num_batches)

    def rows_drawn(self, batches: int) -> list[int]:
        """Return the number of rows in the first 0, 1, ..., `batches` batches from the epoch of the next iteration."""
        sizes = itertools.repeat(self.batch_size) if self.batch_size is not None else map(len, self._stream())
        return list(itertools.accumulate(itertools.islice(sizes, batches), initial=0))

    def _stream(self) -> Iterator[list[int]]:
        """Yield the batches from the epoch of the next iteration, without end."""
        return itertools.chain.from_iterable(self._batches_of(epoch) for epoch in itertools.count(self.epoch))

    def _batches_of(self, epoch: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        drawn = self._drawn(generator)
        return drawn if self._lengths is None else iter(self._by_length(drawn, self._lengths, generator))

    def _drawn(self, generator: torch.Generator) -> Iterator[list[int]]:
        """Yield the draws of an epoch, in the order in which they are drawn."""
        rows = [own[torch.randperm(len(own), generator=generator)] for own in self._rows]
        draws = self._epoch_length * (1 if self.batching == "homogeneous" else self._draw)
        scenarios = torch.multinomial(self.weights, draws, replacement=True, generator=generator)
        if self.batching == "homogeneous":
            for scenario in scenarios.tolist():
                picks = torch.randint(self.sizes[scenario], (self._draw,), generator=generator)
                yield rows[scenario][picks].tolist()
        else:
            for batch in scenarios.view(self._epoch_length, self._draw).tolist():
                drawn = ((s, torch.randint(self.sizes[s], (), generator=generator)) for s in batch)
                yield [rows[scenario][pick].item() for scenario, pick in drawn]

    def _by_length(
        self, drawn: Iterable[list[int]], lengths: Sequence[tuple[int, int]], generator: torch.Generator
    ) -> list[list[int]]:
        """Return the rows of an epoch in batches of similar length, in random order."""
        groups: dict[int, list[int]] = {}  # rows that may share a batch
        for row in itertools.chain.from_iterable(drawn):
            groups.setdefault(self._ids[row] if self.batching == "homogeneous" else 0, []).append(row)
        batches: list[list[int]] = []
        for rows in groups.values():
            rows.sort(key=lengths.__getitem__)  # rows of equal length keep the random order of the draw
            if self._tokens is not None:
                batches += _cut_by_tokens(rows, lengths, self._tokens)
            else:  # the size of a batch divides the number of rows
                batches += [rows[start : start + self._draw] for start in range(0, len(rows), self._draw)]
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def _cut_by_tokens(rows: Sequence[int], lengths: Sequence[tuple[int, int]], tokens: int) -> list[list[int]]:
    """Return batches of neighbouring rows, each with as many rows as fit into `tokens` with their padding."""
    batches: list[list[int]] = []
    source = target = 0  # of the last batch
    for row in rows:
        wider = max(source, lengths[row][0]), max(target, lengths[row][1])
        if batches and (len(batches[-1]) + 1) * sum(wider) <= tokens:
            batches[-1].append(row)
            source, target = wider
        else:
            batches.append([row])
            source, target = lengths[row]
    return batches


def _check_lengths(lengths: Sequence[tuple[int, int]] | None, rows: int, tokens_per_batch: int | None) -> None:
    """Raise ValueError unless there is one pair per row, and each row fits into a batch."""
    if lengths is None:
        if tokens_per_batch is not None:
            raise ValueError("tokens_per_batch needs lengths. Pass lengths=encoded.lengths of your EncodedExamples.")
        return
    if len(lengths) != rows:
        raise ValueError(f"lengths must have one pair per row, {rows}; got {len(lengths)}.")
    longest = max(range(rows), key=lambda row: sum(lengths[row]))
    if tokens_per_batch is not None and sum(lengths[longest]) > tokens_per_batch:
        source, target = lengths[longest]
        raise ValueError(
            f"tokens_per_batch must be at least {source + target}, the tokens of row {longest} (source {source}, "
            f"target {target}); got {tokens_per_batch}. Raise it, or lower max_source or max_target."
        )
