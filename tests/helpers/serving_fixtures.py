"""What tests of the server share: two small runs on one backbone, and a gate before the generation."""

import threading
import time

import pytest
from mop_t5.serving import jobs
from mop_t5.serving.adapters import load_adapters
from t5_fixtures import make_run

DEADLINE = 60  # seconds after which a test has failed


@pytest.fixture(scope="module")
def runs(place):
    mop = make_run(place, "mop", prefix_length=2, d_mid=8, terms_down=4, terms_up=4)
    return [str(mop), f"prompt={make_run(place, 'prompt_tuning', prefix_length=3)}"]


@pytest.fixture(scope="module")
def adapters(runs):
    return load_adapters(runs)


def until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Gate:
    """Stands before the generation: holds each batch until `open`, and keeps its dialogues."""

    def __init__(self, monkeypatch):
        self.batches, self.open, self.entered = [], threading.Event(), threading.Semaphore(0)
        real = jobs.generate_summaries

        def held(model, tokenizer, examples, **keywords):
            self.batches.append([example.dialogue for example in examples])
            self.entered.release()
            assert self.open.wait(DEADLINE)
            return real(model, tokenizer, examples, **keywords)

        monkeypatch.setattr(jobs, "generate_summaries", held)

    def wait(self):
        assert self.entered.acquire(timeout=DEADLINE)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()
