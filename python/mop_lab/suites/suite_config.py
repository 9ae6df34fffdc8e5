"""The settings of a suite: what is run, and how it is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mop_t5.training import TrainingConfig


@dataclass(frozen=True)
class SuiteConfig:
    """What is run, and how it is scored.

    Args:
        corpus: folder with train.jsonl and the split to score, and valid.jsonl if evaluate_every is set.
        backbone: folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub.
        output: folder for the runs and the tables; Tables 2 and 3 can share one, and with it their runs.
        systems: labels of the systems, those of the paper's table and ours if not given. --dry_run lists them.
        scenarios: train and score on the rows of these only, such as '[taxi]'; all if not given.
        seeds: each system is trained with each of these; the table has their mean and deviation.
        learning_rates: rates by system, such as '{MOP: 1e-3}', for other than those of the papers.
        group_rates: factors on the rates of parameter groups, such as '{attention: 0.333}', of the methods that have
            groups of these names.
        options: fields of the methods, such as {"prefix_length": 20}, given to every system whose method has them.
        split: "test" or "valid".
        implementation: package that counts ROUGE, "rouge_score" or "rouge".
        unit: what ROUGE counts, "char", "jieba" or "jieba_hmm".
        normalise: form in which both sides are compared, "none" or "nfkc" (full-width punctuation and digits equal the
            others).
        num_beams: beams of the search; 1 is greedy.
        eval_batch_size: dialogues generated from at once.
    """

    corpus: str
    backbone: str
    output: str
    systems: list[str] | None = None
    scenarios: list[str] | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: dict[str, float] = field(default_factory=dict)
    group_rates: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    implementation: str = "rouge_score"
    unit: str = "char"
    normalise: str = "none"
    num_beams: int = 1
    eval_batch_size: int = 32

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different integers, at least one; got {self.seeds}.")
        for seed in self.seeds:
            TrainingConfig(seed=seed)  # raises what is wrong with it, before the first is trained
        if self.split not in ("test", "valid"):
            raise ValueError(f"split must be 'test' or 'valid', got {self.split!r}.")
        for name in ("num_beams", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
