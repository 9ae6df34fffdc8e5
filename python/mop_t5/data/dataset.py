"""Encode examples as token ids, and collate them into batches of tensors."""

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mop_t5.data.examples import Example
from mop_t5.data.rows import StoredExamples, check_scenarios

IGNORED = -100  # label of padding, which the cross entropy of transformers ignores
_PART = 1000  # rows that are encoded at once
# A tokenizer keeps the truncation of a call in itself, so calls of two threads would cut by each other's length.
_TOKENIZING = Lock()


def _forget_other_threads() -> None:
    """Make a new lock in a forked process, where the thread that held the old one does not exist."""
    global _TOKENIZING
    _TOKENIZING = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class EncodedExamples(Dataset[dict[str, Any]]):
    """Dataset of encoded examples: rows `{"input_ids": list, "labels": list, "scenario_ids": int}`.

    Args:
        examples: The examples. They are encoded once. A row of `StoredExamples` is encoded each time it is asked for.
        tokenizer: Tokenizer of the model.
        scenarios: Names of the scenarios. The position of a name is its id. None to leave out the ids, as for a plain
            backbone.
        source_text: Returns the text to encode from a dialogue and its scenario, such as `Method.source_text`. None
            for the dialogue.
        max_source: Maximum number of tokens of a source. Longer sources are cut at the end.
        max_target: Maximum number of tokens of a target. Longer targets are cut at the end.
        vocab_size: Number of embeddings of the model. None to skip this check.

    Raises:
        TypeError: `examples` is a dataset of the library `datasets`.
        ValueError: `examples` is empty, or an example has an unknown scenario or a token without an embedding.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        scenarios: Sequence[str] | None,
        *,
        source_text: Callable[[str, str], str] | None = None,
        max_source: int = 512,
        max_target: int = 128,
        vocab_size: int | None = None,
    ):
        if type(examples).__module__.partition(".")[0] == "datasets":
            raise TypeError(
                f"examples must be a sequence of Example; got a {type(examples).__name__} of the library datasets. "
                "Read it with mop_t5.data.examples_of. If it is larger than the memory, write it with save_to_disk or "
                "to_parquet, and read it with mop_t5.data.stream_split."
            )
        if not len(examples):
            raise ValueError("examples is empty: there is nothing to train on or to evaluate.")
        self._examples, self._tokenizer, self._source_text = examples, tokenizer, source_text
        self._max_source, self._max_target, self._vocab_size = max_source, max_target, vocab_size
        if scenarios is not None:
            check_scenarios(examples, scenarios)
        self._ids = None if scenarios is None else {name: position for position, name in enumerate(scenarios)}
        self._rows = None if isinstance(examples, StoredExamples) else list(self._all_encoded())

    def _all_encoded(self) -> Iterator[dict[str, Any]]:
        """Yield all rows. A tokenizer keeps offsets and texts beside the ids, so it gets the rows in parts."""
        for start in range(0, len(self), _PART):
            yield from self._encoded(range(start, min(start + _PART, len(self))))

    def _encoded(self, places: Sequence[int]) -> list[dict[str, Any]]:
        examples, tokenizer = [self._examples[place] for place in places], self._tokenizer
        texts = [self._source_text(e.dialogue, e.scenario) if self._source_text else e.dialogue for e in examples]
        # an example to generate from has no summary, and its label is the end-of-sequence token alone
        summaries = [e.summary for e in examples]
        with _TOKENIZING:
            sources = tokenizer(texts, truncation=True, max_length=self._max_source)["input_ids"]
            targets = tokenizer(text_target=summaries, truncation=True, max_length=self._max_target)["input_ids"]
        rows = []
        for example, source, target in zip(examples, sources, targets):
            highest = max(source + target, default=0)
            if self._vocab_size is not None and highest >= self._vocab_size:
                token = tokenizer.convert_ids_to_tokens(highest)
                raise ValueError(
                    f"example {example.id!r} has the token {token!r} of id {highest}, but "
                    f"the model has {self._vocab_size} embeddings. Take the tokenizer that belongs to the model, or "
                    "call model.resize_token_embeddings(len(tokenizer)) before a method is attached."
                )
            row = {"input_ids": source, "labels": target}
            rows.append(row if self._ids is None else row | {"scenario_ids": self._ids[example.scenario]})
        return rows

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index] if self._rows is not None else self._encoded([index])[0]

    @cached_property
    def lengths(self) -> Sequence[tuple[int, int]]:
        """(source length, target length) of each row in tokens, after the cut to max_source and max_target.

        The rows of `StoredExamples` are all encoded once for it, and 8 bytes per row are kept.
        """
        sources, targets = array("i"), array("i")
        for row in self._rows or self._all_encoded():
            sources.append(len(row["input_ids"]))
            targets.append(len(row["labels"]))
        return _Pairs(sources, targets)


class _Pairs(Sequence[tuple[int, int]]):
    """Pairs of ints in two arrays."""

    def __init__(self, first: "array[int]", second: "array[int]"):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index):
        return self._first[index], self._second[index]


class Collator:
    """Collator that pads rows of `EncodedExamples` into a batch of LongTensors.

    A batch has `input_ids` and `attention_mask` (B, S), `labels` (B, T) padded with -100, `scenario_ids` (B,) if
    `num_scenarios` is given, and `decoder_input_ids` (B, T) if `decoder_inputs` is given. S and T are the lengths of
    the longest rows of the batch.

    Args:
        pad_token_id: Id that pads `input_ids`.
        num_scenarios: Number of scenarios. None for batches without scenario ids.
        decoder_inputs: Returns `decoder_input_ids` from `labels`.
    """

    def __init__(
        self,
        pad_token_id: int,
        num_scenarios: int | None = None,
        decoder_inputs: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.pad_token_id, self.num_scenarios, self._decoder_inputs = pad_token_id, num_scenarios, decoder_inputs

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of some rows.

        Raises:
            TypeError: A scenario id is no int.
            ValueError: A scenario id is out of range. It is checked here, on the CPU, because an index out of range on
                a GPU ends the process.
        """
        sources = [torch.tensor(row["input_ids"]) for row in rows]
        labels = [torch.tensor(row["labels"]) for row in rows]
        batch = {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(source) for source in sources], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }
        if self._decoder_inputs is not None:
            batch["decoder_input_ids"] = self._decoder_inputs(batch["labels"])
        if self.num_scenarios is not None:
            ids: list[Any] = [row.get("scenario_ids") for row in rows]
            if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
                raise TypeError(f"scenario_ids must be an int in every row; got {ids}.")
            wrong = [i for i in ids if not 0 <= i < self.num_scenarios]
            if wrong:
                raise ValueError(
                    f"scenario_ids must be in [0, {self.num_scenarios}), got {wrong}. Number the scenarios by their "
                    "position in the list that the method was attached with."
                )
            batch["scenario_ids"] = torch.tensor(ids)
        return batch
