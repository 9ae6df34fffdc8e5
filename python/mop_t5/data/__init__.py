"""Corpora: the file format, a synthetic one, temperature mixing and batches."""

from .collator import Collator, EncodedExamples, scenario_ids_of
from .corpus import (
    SPLITS,
    Example,
    find_split,
    read_corpus,
    read_examples,
    read_split,
    scenarios_of,
    write_examples,
)
from .mixing import BATCHINGS, TemperatureBatchSampler, temperature_weights
from .synthetic import SCENARIOS, synthetic_corpus

__all__ = [
    "BATCHINGS",
    "SCENARIOS",
    "SPLITS",
    "Collator",
    "EncodedExamples",
    "Example",
    "TemperatureBatchSampler",
    "find_split",
    "read_corpus",
    "read_examples",
    "read_split",
    "scenario_ids_of",
    "scenarios_of",
    "synthetic_corpus",
    "temperature_weights",
    "write_examples",
]
