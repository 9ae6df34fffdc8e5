"""The memory of training steps on a CPU, by torch's profiler."""

import torch
from torch.profiler import ProfilerActivity, profile


def peak_of(step):
    """The most bytes that a function holds at once of what it allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    held = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def batch_of(rows, source, target, vocabulary):
    """A batch of a plain T5. The first row is padded, as a plan assumes."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(2, vocabulary, (rows, source), generator=generator),
        "attention_mask": torch.ones(rows, source, dtype=torch.int64),
        "labels": torch.randint(2, vocabulary, (rows, target), generator=generator),
    }
    batch["attention_mask"][0, -5:] = 0
    return batch
