"""mop-t5 corpus floors"""

from __future__ import annotations

from mop_t5.data import of_scenarios, read_split, read_tasks
from mop_t5.evaluation import FLOORS, Rouge, Scorer, present, score_table


def corpus_floors(
    corpus: str,
    split: str = "test",
    scenarios: list[str] | None = None,
    implementation: str = "rouge_score",
    unit: str = "char",
    normalise: str = "none",
    output: str | None = None,
) -> None:
    """Score texts that no model made: the first user turn, a random and the nearest training reference.

    A model that does not pass the nearest reference has learnt the form of the summaries and not the content.

      mop-t5 corpus floors --corpus DIR
      mop-t5 corpus floors --corpus DIR --split valid --unit jieba --output tables

    Args:
        corpus: folder with train.jsonl and the split to score.
        split: "test" or "valid".
        scenarios: score the rows of these scenarios only, such as '[taxi]'; all if not given.
        implementation: package that counts ROUGE, "rouge_score" or "rouge".
        unit: what ROUGE counts, "char", "jieba" or "jieba_hmm".
        normalise: form in which both sides are compared, "none" or "nfkc" (full-width punctuation and digits equal the
            others).
        output: folder for floors.md and floors.csv; only printed if not given.
    """
    if split not in ("test", "valid"):
        raise ValueError(f"split must be 'test' or 'valid', got {split!r}.")
    scorer = Scorer(Rouge(implementation, unit, normalise), read_tasks(corpus))
    known, rows = (of_scenarios(read_split(corpus, name), scenarios) for name in ("train", split))
    texts = {name: make(rows, known) for name, make in FLOORS.items()}
    scores = {name: scorer(rows, made) for name, made in texts.items()}
    title = f"{scorer} on {len(rows)} {split} rows, without a model"
    present([score_table(title, scores, notes=scorer.remarks(rows, texts))], "floors", output)
