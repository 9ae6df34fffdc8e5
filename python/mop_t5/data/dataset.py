"""Encode examples as token ids, and collate them into batches of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mop_t5.data.corpus import Example

IGNORED = -100  # label of padding, which the cross entropy of transformers ignores


class EncodedExamples(Dataset[dict[str, Any]]):
    """Dataset of encoded examples: rows `{"input_ids": list, "labels": list, "scenario_ids": int}`.

    Args:
        examples: The examples. They are encoded once.
        tokenizer: Tokenizer of the model.
        scenarios: Names of the scenarios. The position of a name is its id. None to leave out the ids, as for a plain
            backbone.
        source_text: Returns the text to encode from a dialogue and its scenario, such as `Method.source_text`. None
            for the dialogue.
        max_source: Maximum number of tokens of a source. Longer sources are cut at the end.
        max_target: Maximum number of tokens of a target. Longer targets are cut at the end.
        vocab_size: Number of embeddings of the model. None to skip this check.

    Raises:
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
        if not examples:
            raise ValueError("examples is empty: there is nothing to train on or to evaluate.")
        texts = [e.dialogue if source_text is None else source_text(e.dialogue, e.scenario) for e in examples]
        sources = tokenizer(texts, truncation=True, max_length=max_source)["input_ids"]
        # an example to generate from has no summary, and its label is the end-of-sequence token alone
        summaries = [e.summary for e in examples]
        targets = tokenizer(text_target=summaries, truncation=True, max_length=max_target)["input_ids"]
        self._rows: list[dict[str, Any]] = []
        for example, source, target in zip(examples, sources, targets):
            highest = max(source + target, default=0)
            if vocab_size is not None and highest >= vocab_size:
                token = tokenizer.convert_ids_to_tokens(highest)
                raise ValueError(
                    f"example {example.id!r} has the token {token!r} of id {highest}, but "
                    f"the model has {vocab_size} embeddings. Take the tokenizer that belongs to the model, or call "
                    "model.resize_token_embeddings(len(tokenizer)) before a method is attached."
                )
            self._rows.append({"input_ids": source, "labels": target})
        if scenarios is not None:
            for row, scenario_id in zip(self._rows, scenario_ids_of(examples, scenarios)):
                row["scenario_ids"] = scenario_id

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(source length, target length) of each row in tokens, after the cut to max_source and max_target."""
        return [(len(row["input_ids"]), len(row["labels"])) for row in self._rows]


def scenario_ids_of(examples: Sequence[Example], scenarios: Sequence[str]) -> list[int]:
    """Return the position of every example's scenario in `scenarios`.

    Raises:
        ValueError: A scenario is not in `scenarios`.
    """
    position = {name: i for i, name in enumerate(scenarios)}
    for example in examples:
        if example.scenario not in position:
            raise ValueError(
                f"example {example.id!r} is of scenario {example.scenario!r}; known are {', '.join(scenarios)}. "
                "Train with this scenario in the corpus, or take the row out."
            )
    return [position[example.scenario] for example in examples]


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
