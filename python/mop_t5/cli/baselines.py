"""Score the baselines of a corpus: `mop-t5 corpus floors`."""

from __future__ import annotations

from mop_t5.data import of_scenarios, read_split, read_tasks
from mop_t5.evaluation import Rouge, Scorer, baseline_texts, present, score_table


def corpus_floors(
    rouge: Rouge,
    corpus: str,
    split: str = "test",
    scenarios: list[str] | None = None,
    output: str | None = None,
) -> None:
    """Score the baselines, which need no model: the first user turn, a random and the nearest training reference.

    A model that scores below the nearest reference has learnt the form of the summaries and not their content.

      mop-t5 corpus floors --corpus DIR
      mop-t5 corpus floors --corpus DIR --split valid --unit jieba --output tables

    Args:
        rouge: how ROUGE is counted.
        corpus: folder with train.jsonl and the split to score.
        split: "test" or "valid".
        scenarios: score the rows of these scenarios only, such as '[taxi]'; all if not given.
        output: folder for floors.md and floors.csv; only printed if not given.
    """
    if split not in ("test", "valid"):
        raise ValueError(f"split must be 'test' or 'valid', got {split!r}.")
    scorer = Scorer(rouge, read_tasks(corpus))
    train, rows = (of_scenarios(read_split(corpus, name), scenarios) for name in ("train", split))
    texts = baseline_texts(rows, train)
    scores = {name: scorer(rows, given) for name, given in texts.items()}
    title = f"{scorer} on {len(rows)} {split} rows, without a model"
    present([score_table(title, scores, notes=scorer.remarks(rows, texts))], "floors", output)
