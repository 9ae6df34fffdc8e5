"""Characters of references that a tokenizer cannot write.

The tokenizers of mT5 and umT5 write "," where a reference has the full-width comma of Chinese, so that even a perfect
model scores below 100. In the form "nfkc" both sides have the same characters.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from mop_t5.data import Example
from mop_t5.evaluation.rouge import normalised
from mop_t5.evaluation.scorer import Scorer
from mop_t5.evaluation.scores import mean_scores

_SAMPLE = 200  # references that are encoded and decoded
_NAMED = 6  # characters that the warning names


def warn_of_lost_characters(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], scorer: Scorer, split: str
) -> list[str]:
    """Warn where references hold characters that a model with this tokenizer cannot write.

    Up to 200 references, evenly spread over the split, are encoded and decoded in the same way as summaries. Case and
    white space do not count.

    Args:
        tokenizer: The tokenizer of the model.
        examples: The rows whose references are scored.
        scorer: The scorer of the references, with its Unicode form.
        split: The name of the split, for the message.

    Returns:
        The warning, as notes for a table. Empty if no character is lost.
    """
    sample = examples[:: -(-len(examples) // _SAMPLE)]
    references = [example.summary for example in sample]
    tokens = tokenizer(text_target=references)["input_ids"]
    written = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    lost = _differing(references, written, scorer.form)
    if not lost:
        return []
    gone = sum((Counter(_bare(r, scorer.form)) - Counter(_bare(w, scorer.form)) for r, w in lost), Counter())
    names = " ".join(character for character, _ in gone.most_common(_NAMED))
    helps = scorer.form == "none" and len(_differing(references, written, "nfkc")) < len(lost)
    cure = (
        "Pass --normalise nfkc to compare both sides in Unicode's form NFKC."
        if helps
        else ("Choose a backbone whose vocabulary has them.")
    )
    note = (
        f"{len(lost)} of {len(sample)} references of the {split} split come back changed from the tokenizer; lost are "
        f"characters such as {names}.{_best(scorer, sample, written)} {cure}"
    )
    warnings.warn(note, stacklevel=2)
    return [note]


def _best(scorer: Scorer, sample: Sequence[Example], written: Sequence[str]) -> str:
    """Return a sentence on the score of a perfect model. Empty where no task is scored by ROUGE."""
    scores = list(scorer.by_rouge(sample, written).values())
    if not scores:
        return ""
    numbers = "/".join(f"{100 * value:.1f}" for value in mean_scores(scores))
    return f" So a perfect model would score {numbers} (R-1/R-2/R-L) on these rows."


def _differing(references: Sequence[str], written: Sequence[str], form: str) -> list[tuple[str, str]]:
    return [(r, w) for r, w in zip(references, written, strict=True) if _bare(r, form) != _bare(w, form)]


def _bare(text: str, form: str) -> str:
    return "".join(normalised(text, form).lower().split())
