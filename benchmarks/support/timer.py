"""How work on a GPU is timed, and what the GPU can do: rates of a copy and of matrix products.

Device time: calls captured in one CUDA graph, each on its own copy of the inputs, so that together they are larger than
the L2 cache; the graph is replayed between two events. Eager time: the same calls one by one, as a program makes them.
Without a GPU the same functions run on the CPU, by the wall clock: for tests of the benchmarks themselves.
"""

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.support.work import PRECISIONS, Precision


def on_gpu() -> bool:
    return torch.cuda.is_available()


def copies_past_the_cache(tensors: list[Tensor], nbytes: int) -> list[list[Tensor]]:
    """As many copies of the inputs as make calls of `nbytes` each exceed twice the L2 cache; 1 to 16."""
    cache = torch.cuda.get_device_properties().L2_cache_size if on_gpu() else 0
    count = min(max(1, math.ceil(2 * cache / nbytes)), 16)
    return [tensors, *([t.detach().clone().requires_grad_(t.requires_grad) for t in tensors] for _ in range(count - 1))]


def graph_times(call: Callable, inputs: list[list[Tensor]], rounds: int) -> list[float]:
    """Milliseconds of one call on the device, a number a round."""
    if not on_gpu():
        return _wall_times(lambda: [call(*tensors) for tensors in inputs], len(inputs), rounds)
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


def eager_times(call: Callable, inputs: list[list[Tensor]], rounds: int) -> list[float]:
    """Milliseconds of one call when all are issued one by one and waited for at the end."""
    return _wall_times(lambda: [call(*tensors) for tensors in inputs], len(inputs), rounds)


def host_times(call: Callable, tensors: list[Tensor], calls: int, rounds: int) -> list[float]:
    """Milliseconds that the host takes to issue one call; the device is waited for outside the clock."""

    def issue():
        for _ in range(calls):
            call(*tensors)

    return _wall_times(issue, calls, rounds, wait_inside=False)


def _wall_times(function: Callable, calls: int, rounds: int, wait_inside: bool = True) -> list[float]:
    wait = torch.cuda.synchronize if on_gpu() else lambda: None
    function()
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        function()
        if wait_inside:
            wait()
        times.append(1e3 * (time.perf_counter() - start) / calls)
    wait()
    return times


def rates(full_size: bool) -> dict:
    """GB/s of a copy (read and written both counted) and GFLOP/s of square torch.mm in each precision, medians."""
    side, count = (8192, 2**28) if full_size else (64, 2**12)
    source = torch.randn(count)
    target = torch.empty_like(source)
    copy = statistics.median(eager_times(lambda: target.copy_(source), [[]], 10))
    return {
        "copy_gbps": 2 * source.nbytes / copy / 1e6,
        "mm_gflops": {p.name: _mm_rate(p, side) for p in PRECISIONS},
    }


def _mm_rate(precision: Precision, side: int) -> float:
    a, b = (torch.randn(side, side).to(precision.dtype) for _ in range(2))
    with precision.in_force():
        return 2 * side**3 / statistics.median(eager_times(torch.mm, [[a, b]], 7)) / 1e6


def summary(times: list[float]) -> dict:
    first, middle, third = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median_ms": middle, "q1_ms": first, "q3_ms": third, "min_ms": min(times), "rounds": len(times)}
