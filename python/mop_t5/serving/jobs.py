"""Jobs, and the generation of their summaries in one batch."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from mop_t5.data import Example
from mop_t5.evaluation.generation import generate_summaries, source_lengths
from mop_t5.serving.adapters import Adapter


class Answer(NamedTuple):
    """A summary, and the numbers of tokens.

    Attributes:
        summary: The text.
        truncated: Whether the end of the dialogue was cut.
        dialogue_tokens: Tokens that were read.
        steps: Steps of the search. A greedy search makes one token per step; its last token can be the end token.
    """

    summary: str
    truncated: bool
    dialogue_tokens: int
    steps: int


@dataclass(eq=False)
class Job:
    """A dialogue to summarise.

    Attributes:
        adapter: The run that answers.
        example: The dialogue and its scenario.
        num_beams: Beams of the search.
        max_new_tokens: Tokens of the summary at most.
        on_piece: Called in the thread of the generation with each new piece of the summary. None if the summary is
            wanted as a whole. The search must be greedy otherwise.
        answer: Gets the answer or the error. `answer.cancel()` ends the job at any time.
        since: time.monotonic() at the start of the job.
    """

    adapter: Adapter
    example: Example
    num_beams: int
    max_new_tokens: int
    on_piece: Callable[[str], None] | None = None
    answer: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    _sent: str = field(default="", init=False)

    @property
    def kind(self) -> tuple[str, int, int]:
        """The model and the search. Jobs of the same kind can share a batch."""
        return self.adapter.name, self.num_beams, self.max_new_tokens

    def send(self, piece: str) -> None:
        """Hand out the next piece of the summary. White space before the first word is left out."""
        piece = piece if self._sent else piece.lstrip()
        if piece and self.on_piece is not None:
            self._sent += piece
            self.on_piece(piece)

    def send_rest(self, summary: str) -> None:
        """Hand out what is missing of the finished summary."""
        if summary.startswith(self._sent):
            self.send(summary[len(self._sent) :])

    @property
    def is_streamed(self) -> bool:
        """Whether the next token of the summary can be handed out. A job that runs for a second time starts anew."""
        return self.on_piece is not None and not self._sent


def summarise(jobs: Sequence[Job]) -> list[Answer]:
    """Return the answers of jobs of one kind. The search is the one of `mop-t5 generate`.

    A job whose answer is cancelled generates no further token.
    """
    first, examples = jobs[0], [job.example for job in jobs]
    model, tokenizer, max_source = first.adapter.model, first.adapter.tokenizer, first.adapter.max_source
    steps = [0] * len(jobs)
    summaries = generate_summaries(
        model,
        tokenizer,
        examples,
        batch_size=len(jobs),
        num_beams=first.num_beams,
        max_source=max_source,
        max_new_tokens=first.max_new_tokens,
        more_arguments=lambda places: {"stopping_criteria": StoppingCriteriaList([_Steps(jobs, places, steps)])},
    )
    for job, summary in zip(jobs, summaries):
        job.send_rest(summary)
    lengths = source_lengths(model, tokenizer, examples, max_source)
    return [
        Answer(summary, length > max_source, min(length, max_source), count)
        for summary, length, count in zip(summaries, lengths, steps)
    ]


class _Steps(StoppingCriteria):
    """Counts the steps of every job of a batch, hands out the words of streamed jobs, and stops cancelled jobs.

    A streamer of transformers takes one row only.

    Args:
        jobs: All jobs.
        places: The jobs of the rows, as positions in `jobs`.
        steps: The number of steps per job. It is updated.
    """

    def __init__(self, jobs: Sequence[Job], places: Sequence[int], steps: list[int]):
        self._jobs, self._places, self._steps = jobs, places, steps
        self._pad = jobs[0].adapter.tokenizer.pad_token_id
        self._words = {row: _Words(jobs[place]) for row, place in enumerate(places) if jobs[place].is_streamed}

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        beams = len(input_ids) // len(self._places)
        runs = (input_ids[:, -1] != self._pad).reshape(-1, beams).any(1).tolist()  # a finished row gets pad tokens
        for place, running in zip(self._places, runs):
            self._steps[place] += running
        for row, words in self._words.items():
            words.put(input_ids[row, -1:])
        over = torch.tensor([self._jobs[place].answer.cancelled() for place in self._places], device=input_ids.device)
        return over.repeat_interleave(beams)


class _Words(TextStreamer):
    """Hands out the summary of a job by whole words. `Job.send_rest` hands out what it holds back."""

    def __init__(self, job: Job):
        super().__init__(job.adapter.tokenizer, skip_special_tokens=True)
        self._job = job

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand out a piece of text."""
        if not self._job.answer.cancelled():
            self._job.send(text)
