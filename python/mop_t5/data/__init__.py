"""Read, write, convert and make corpora, mix their scenarios by temperature, and make batches."""

from mop_t5.data.corpus import SPLITS, read_corpus, read_examples, read_split, stream_split, write_examples
from mop_t5.data.dataset import Collator, EncodedExamples
from mop_t5.data.dataset_objects import examples_of
from mop_t5.data.examples import Example
from mop_t5.data.mixing import BATCHINGS, TemperatureBatchSampler
from mop_t5.data.rows import StoredExamples, of_scenarios, scenario_ids_of, scenarios_of
from mop_t5.data.synthetic import synthetic_corpus
from mop_t5.data.tasks import TASKS, TaskMetrics, read_tasks, tasks_yaml

__all__ = [
    "BATCHINGS",
    "SPLITS",
    "TASKS",
    "Collator",
    "EncodedExamples",
    "Example",
    "StoredExamples",
    "TaskMetrics",
    "TemperatureBatchSampler",
    "examples_of",
    "of_scenarios",
    "read_corpus",
    "read_examples",
    "read_split",
    "read_tasks",
    "scenario_ids_of",
    "scenarios_of",
    "stream_split",
    "synthetic_corpus",
    "tasks_yaml",
    "write_examples",
]
