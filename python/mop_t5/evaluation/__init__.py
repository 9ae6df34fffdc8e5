"""Generation of summaries, and their scores: ROUGE, other metrics, baselines, tables."""

from mop_t5.evaluation.amounts import number_recall
from mop_t5.evaluation.baselines import (
    BASELINES,
    baseline_texts,
    first_user_turn,
    nearest_reference,
    random_reference,
)
from mop_t5.evaluation.generation import generate_summaries
from mop_t5.evaluation.predictions import PREDICTIONS, read_predictions, write_predictions
from mop_t5.evaluation.rouge import IMPLEMENTATIONS, UNITS, Rouge
from mop_t5.evaluation.scorer import Scorer
from mop_t5.evaluation.scores import (
    AVERAGE,
    SCORES,
    MetricScores,
    Scores,
    TaskScores,
    by_metric,
    combined,
    mean_scores,
    read_scores,
    with_average,
    write_scores,
)
from mop_t5.evaluation.tables import Table, metric_names, present, score_table, show, to_csv, to_markdown, write_texts
from mop_t5.evaluation.values import Value, Values, ValueScores, value_recall
from mop_t5.plots.charts import plot_losses

__all__ = [
    "AVERAGE",
    "BASELINES",
    "IMPLEMENTATIONS",
    "PREDICTIONS",
    "SCORES",
    "UNITS",
    "MetricScores",
    "Rouge",
    "Scorer",
    "Scores",
    "Table",
    "TaskScores",
    "Value",
    "ValueScores",
    "Values",
    "baseline_texts",
    "by_metric",
    "combined",
    "first_user_turn",
    "generate_summaries",
    "mean_scores",
    "metric_names",
    "nearest_reference",
    "number_recall",
    "plot_losses",
    "present",
    "random_reference",
    "read_predictions",
    "read_scores",
    "score_table",
    "show",
    "to_csv",
    "to_markdown",
    "value_recall",
    "with_average",
    "write_predictions",
    "write_scores",
    "write_texts",
]
