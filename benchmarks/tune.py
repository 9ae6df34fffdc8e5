"""`make tune`: time every launch configuration that a kernel proposes, on the work of support/work.py, on this GPU.

    python -m benchmarks.tune [--seconds 400]

The configurations that beat the kernel's own choice are written to mop_kernels/triton_kernels/configs/<GPU name>.json;
triton_kernels/launch.py reads this file. The whole operation is timed, forward and backward, replayed from a CUDA
graph: only the configuration changes. Several processes first compile all kernels into Triton's cache, so that the GPU
time is spent on measurements only.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import product

import torch

from benchmarks.support import compiler, launches, results, timer
from benchmarks.support.step_work import run
from benchmarks.support.work import BFLOAT16, BOTH, FLOAT32, FORWARD, WORK, Precision, Work
from mop_kernels.triton_kernels.launch import Choice, forced, path_of

GAIN = 0.97  # a configuration is kept if it takes at most this share of the time of the kernel's own choice
LARGEST = 2 * 10**9  # bytes; larger works would leave no time for the others


def best_of(choice: Choice, time_ms: Callable[[], float]) -> dict[str, int] | None:
    """Return the fastest configuration if it is clearly faster than the kernel's own choice, otherwise None."""
    candidates = choice.candidates()
    times = []
    for config in candidates:
        with forced(choice, config):
            try:
                times.append(time_ms())
            except Exception as error:  # a candidate may not compile, or not fit
                if config is candidates[0]:
                    raise
                print(f"  {choice.kernel} {config}: {type(error).__name__}", flush=True)
                times.append(float("inf"))
    return candidates[times.index(min(times))] if min(times) <= GAIN * times[0] else None


def tune(
    works: Iterable[Work],
    precisions: Iterable[Precision],
    timer_of: Callable[[Work, Precision], Callable[[], float]],
    deadline: float,
) -> dict[str, dict[str, dict[str, int]]]:
    """Return {kernel: {key: configuration}} of the launches tuned before `deadline`, a time of time.monotonic."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    first: dict[tuple[str, str], tuple[Work, Precision, Choice]] = {}
    for work, precision in product(works, precisions):
        for choice in launches.choices_of(work, precision):
            first.setdefault(choice.key, (work, precision, choice))
    for (kernel, key), (work, precision, choice) in first.items():
        if time.monotonic() > deadline:
            print("out of time: the other works keep the kernels' own choices")
            break
        with precision.in_force():
            config = best_of(choice, timer_of(work, precision))
        if config is not None:
            print(f"{kernel}, {key}: {config}", flush=True)
            found.setdefault(kernel, {})[key] = config
    return found


def device_timer_of(work: Work, precision: Precision) -> Callable[[], float]:
    """Return a function that returns the milliseconds of one call, by the device's clock."""
    with torch.device("cuda"):
        tensors = work.inputs(precision.dtype)
        grads = [torch.randn(shape, dtype=precision.dtype) for shape in work.output_shapes()]
    inputs = timer.copies_past_the_cache(tensors, work.least_work(precision.dtype, FORWARD)[1])

    @torch.no_grad()
    def time_ms() -> float:
        return statistics.median(timer.graph_times(lambda *t: run(work, t, BOTH, grads), inputs, 20))

    return time_ms


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=400, help="stop after this many seconds (%(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("Tuning needs a CUDA GPU, on which it times the kernels; torch sees no GPU.")
    deadline = time.monotonic() + arguments.seconds
    works = [w for w in WORK if w.least_work(torch.float32, BOTH)[1] < LARGEST]
    # float16 takes the configurations of bfloat16, TF32 those of float32
    precisions = (FLOAT32, BFLOAT16)
    major, minor = torch.cuda.get_device_capability()
    tasks = [(launch, 10 * major + minor) for launch in launches.of_works(works, precisions, candidates=True)]
    compiler.compile_all(tasks, workers=os.cpu_count() or 1, seconds=arguments.seconds / 2)
    found = tune(works, precisions, device_timer_of, deadline)
    for keys in found.values():
        keys |= {key.replace("bfloat16", "float16"): config for key, config in keys.items() if "bfloat16" in key}
    path = path_of(torch.cuda.get_device_name())
    results.write(found, path, sort_keys=True)
    print(f"{sum(map(len, found.values()))} configurations written to {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
