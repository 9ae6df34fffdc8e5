"""Corpora: the file format, a synthetic one, temperature mixing and batches."""

from mop_t5.data.corpus import (
    SPLITS,
    Example,
    find_split,
    of_scenarios,
    read_corpus,
    read_examples,
    read_split,
    scenarios_of,
    write_examples,
)
from mop_t5.data.dataset import Collator, EncodedExamples, scenario_ids_of
from mop_t5.data.mixing import BATCHINGS, TemperatureBatchSampler, temperature_weights
from mop_t5.data.synthetic import SCENARIOS, synthetic_corpus
from mop_t5.data.tasks import METRICS, TASKS, TaskMetrics, read_tasks, tasks_yaml

__all__ = [
    "BATCHINGS",
    "METRICS",
    "SCENARIOS",
    "SPLITS",
    "TASKS",
    "Collator",
    "EncodedExamples",
    "Example",
    "TaskMetrics",
    "TemperatureBatchSampler",
    "find_split",
    "of_scenarios",
    "read_corpus",
    "read_examples",
    "read_split",
    "read_tasks",
    "scenario_ids_of",
    "scenarios_of",
    "synthetic_corpus",
    "tasks_yaml",
    "temperature_weights",
    "write_examples",
]
