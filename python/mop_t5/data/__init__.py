"""Read, write, convert and make corpora, mix their scenarios by temperature, and make batches."""

from mop_t5.data.corpus import (
    SPLITS,
    Example,
    of_scenarios,
    read_corpus,
    read_examples,
    read_split,
    scenarios_of,
    write_examples,
)
from mop_t5.data.dataset import Collator, EncodedExamples, scenario_ids_of
from mop_t5.data.mixing import BATCHINGS, TemperatureBatchSampler
from mop_t5.data.synthetic import synthetic_corpus
from mop_t5.data.tasks import TASKS, TaskMetrics, read_tasks, tasks_yaml

__all__ = [
    "BATCHINGS",
    "SPLITS",
    "TASKS",
    "Collator",
    "EncodedExamples",
    "Example",
    "TaskMetrics",
    "TemperatureBatchSampler",
    "of_scenarios",
    "read_corpus",
    "read_examples",
    "read_split",
    "read_tasks",
    "scenario_ids_of",
    "scenarios_of",
    "synthetic_corpus",
    "tasks_yaml",
    "write_examples",
]
