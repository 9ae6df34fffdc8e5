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
from mop_t5.evaluation.tables import format_scores, make_table, score_table, show, to_markdown

__all__ = [
    "AVERAGE",
    "FLOORS",
    "IMPLEMENTATIONS",
    "UNITS",
    "Rouge",
    "Scores",
    "by_scenario",
    "first_user_turn",
    "format_scores",
    "generate_summaries",
    "make_table",
    "mean_scores",
    "nearest_reference",
    "number_recall",
    "plot_losses",
    "random_reference",
    "score_table",
    "show",
    "to_markdown",
]
