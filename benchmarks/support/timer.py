"""Timers for work on a GPU.

Device time: calls are captured in one CUDA graph. Each call has its own copy of the inputs, so that all copies together
are larger than the L2 cache. The graph is replayed between two events. Eager time: the same calls are issued one by
one, as a program makes them. Without a GPU the same functions run on the CPU, by the wall clock.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[..., object]


def copies_past_the_cache(tensors: list[Tensor], nbytes: int) -> list[list[Tensor]]:
    """Return copies of the inputs, 1 to 16, so that calls of `nbytes` bytes each exceed twice the L2 cache."""
    cache = torch.cuda.get_device_properties().L2_cache_size if torch.cuda.is_available() else 0
    count = min(max(1, math.ceil(2 * cache / nbytes)), 16)
    return [tensors, *([t.detach().clone().requires_grad_(t.requires_grad) for t in tensors] for _ in range(count - 1))]


def graph_times(call: Call, inputs: Sequence[Sequence[Tensor]], rounds: int) -> list[float]:
    """Return the milliseconds of one call on the device, one number per round."""
    if not torch.cuda.is_available():
        return eager_times(call, inputs, rounds)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(*inputs[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call(*tensors) for tensors in inputs]  # kept, so that no call writes where another has
    for _ in range(3):
        graph.replay()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    del results
    return [start.elapsed_time(end) / len(inputs) for start, end in events]


def eager_times(call: Call, inputs: Sequence[Sequence[Tensor]], rounds: int, wait_inside: bool = True) -> list[float]:
    """Return the milliseconds of one call per round, in which the calls are issued one by one.

    Args:
        call: The function to time.
        inputs: Arguments of each call of a round.
        rounds: Number of rounds.
        wait_inside: True: the round ends when the device has finished. False: the round ends when the host has issued
            all calls.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def issue() -> list[object]:
        return [call(*tensors) for tensors in inputs]

    issue()
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        issue()
        if wait_inside:
            wait()
        times.append(1e3 * (time.perf_counter() - start) / len(inputs))
    wait()
    return times


WAYS = {"graph": graph_times, "eager": eager_times}


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return the columns of a row that summarise its rounds, in milliseconds."""
    first, middle, third = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else list(times) * 3
    return {"median_ms": middle, "q1_ms": first, "q3_ms": third, "min_ms": min(times), "rounds": len(times)}
