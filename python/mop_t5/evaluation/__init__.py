"""Generation of summaries, and their scores: ROUGE, other metrics, baselines, tables."""

from mop_t5.evaluation.amounts import number_recall
from mop_t5.evaluation.baselines import BASELINES, baseline_texts
from mop_t5.evaluation.generation import generate_summaries
from mop_t5.evaluation.rouge import Rouge
from mop_t5.evaluation.scorer import Scorer
from mop_t5.evaluation.scores import (
    AVERAGE,
    PREDICTIONS,
    SCORES,
    MetricScores,
    Scores,
    TaskScores,
    by_metric,
    combined,
    mean_scores,
    read_predictions,
    read_scores,
    with_average,
    write_predictions,
    write_scores,
)
from mop_t5.evaluation.tables import Table, metric_names, present, score_table, show, to_csv, to_markdown, write_texts
from mop_t5.evaluation.values import Values, ValueScores, value_recall

__all__ = [
    "AVERAGE",
    "BASELINES",
    "PREDICTIONS",
    "SCORES",
    "MetricScores",
    "Rouge",
    "Scorer",
    "Scores",
    "Table",
    "TaskScores",
    "ValueScores",
    "Values",
    "baseline_texts",
    "by_metric",
    "combined",
    "generate_summaries",
    "mean_scores",
    "metric_names",
    "number_recall",
    "present",
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
