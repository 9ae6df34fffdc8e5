"""Generated summaries and what they are worth: ROUGE, floors, tables."""

from mop_t5.evaluation.floors import FLOORS, first_user_turn, nearest_reference, random_reference
from mop_t5.evaluation.generation import generate_summaries
from mop_t5.evaluation.plots import plot_losses
from mop_t5.evaluation.rouge import (
    AVERAGE,
    IMPLEMENTATIONS,
    UNITS,
    Rouge,
    Scores,
    by_scenario,
    mean_scores,
    number_recall,
)
from mop_t5.evaluation.scores import SCORES, read_scores, write_scores
from mop_t5.evaluation.tables import Table, present, score_table, show, to_csv, to_markdown

__all__ = [
    "AVERAGE",
    "FLOORS",
    "IMPLEMENTATIONS",
    "SCORES",
    "UNITS",
    "Rouge",
    "Scores",
    "Table",
    "by_scenario",
    "first_user_turn",
    "generate_summaries",
    "mean_scores",
    "nearest_reference",
    "number_recall",
    "plot_losses",
    "present",
    "random_reference",
    "read_scores",
    "score_table",
    "show",
    "to_csv",
    "to_markdown",
    "write_scores",
]
