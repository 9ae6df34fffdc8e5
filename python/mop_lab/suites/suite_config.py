"""The settings of a suite: the systems that are trained, and how they are scored."""

from dataclasses import dataclass, field
from typing import Any

from mop_t5.checks import check_choice, check_least
from mop_t5.data import of_scenarios, read_split, read_tasks
from mop_t5.data.dataset_objects import place_of
from mop_t5.evaluation import Rouge, Scorer
from mop_t5.evaluation.run_evaluation import scoring_settings
from mop_t5.training import TrainingConfig


@dataclass(frozen=True)
class SuiteConfig:
    """The systems that are trained, and how they are scored.

    Args:
        corpus: folder with the split train and the split to score, and valid if evaluate_every is set. Or a dataset on
            the hub, hub:OWNER/NAME.
        backbone: folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub.
        output: folder for the runs and the tables. Tables 2 and 3 can share one folder, and with it their runs.
        systems: labels of the systems. --dry_run lists the default.
        scenarios: train and score on the rows of these scenarios only, such as '[taxi]'. The default is all.
        seeds: train each system once with each of these seeds. The table shows the mean and the deviation over them.
        learning_rates: learning rates by system, such as '{MOP: 1e-3}', in place of the rates of the papers.
        group_rates: factors on the learning rates of parameter groups, such as '{attention: 0.333}', for the methods
            that have groups of these names.
        options: fields of the methods, such as {"prefix_length": 20}, given to every system whose method has them.
        split: the split to score, "test" or "valid".
        implementation: package that computes ROUGE, "rouge_score" or "rouge".
        unit: the unit that ROUGE counts, "char", "jieba" or "jieba_hmm".
        normalise: form in which reference and summary are compared, "none" or "nfkc" (full-width punctuation and
            digits equal the usual ones).
        num_beams: beams of the search. 1 is greedy.
        eval_batch_size: dialogues per batch of the generation.
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
            TrainingConfig(seed=seed)  # raises an error for a wrong seed before the first training
        check_choice("split", self.split, ("test", "valid"))
        check_least(self, 1, "num_beams", "eval_batch_size")

    def scorer(self) -> Scorer:
        """Return the scorer of the corpus."""
        return Scorer(Rouge(self.implementation, self.unit, self.normalise), read_tasks(self.corpus))

    def scoring(self) -> dict[str, Any]:
        """Return the settings that scores depend on, besides the run."""
        return scoring_settings(place_of(self.corpus), self.split, self.scorer())

    def how_scored(self, detail: str = "") -> str:
        """Return the part of a table's title that states how the systems were scored, and on how many rows.

        Args:
            detail: Words after the metrics.
        """
        rows = of_scenarios(read_split(self.corpus, self.split), self.scenarios)
        return f"{self.scorer()}{detail} on {len(rows)} {self.split} rows, {self.num_beams} beam(s)"
