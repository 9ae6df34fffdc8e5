"""What tests of several folders share."""

import gc
import os
from collections.abc import Iterator

import pytest
from forks import Forks, forks_of

gc.set_threshold(100_000, 20, 20)  # by default a tenth of the suite is the collector's, which finds little


@pytest.fixture(scope="session", autouse=True)
def disk_without_waiting() -> Iterator[None]:
    """What a test writes need not outlive a power failure. A killed process loses nothing without os.fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def forks_with_t5() -> Iterator[Forks]:
    """Forks of a process that has imported torch and T5 with its trainer, but nothing of this project."""
    start = "from transformers import Adafactor, T5ForConditionalGeneration, Trainer\n"
    with forks_of(start, os.environ | {"OMP_NUM_THREADS": "1"}) as forks:
        yield forks
