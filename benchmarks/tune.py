"""`make tune`: times every launch configuration a kernel offers on the work of device_work.py, on this GPU.

    python -m benchmarks.tune [--seconds 400]

Writes mop_kernels/triton_kernels/configs/<GPU name>.json with those that beat the kernel's own choice; launch_config.py
reads it. What is timed is the whole operation, forward and backward, replayed from a CUDA graph: all else in it stays
the same. Kernels are compiled first, by several processes into Triton's cache, so that only running takes GPU time.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable

import torch

from benchmarks import compiler, launches
from benchmarks.support import timer as device_timer
from benchmarks.support.work import BOTH, FORWARD, PRECISIONS, WORK, Precision, Work, run
from mop_kernels.triton_kernels.launch import Choice, asked, forced, path_of, recording

GAIN = 0.97  # a configuration is kept if it takes at most this share of the own choice's time
LARGEST = 2 * 10**9  # bytes: larger work would take the time of all other


def choices_of(work: Work, precision: Precision) -> list[Choice]:
    """The distinct choices of one call forward and backward, found without running it."""
    with torch.device("meta"), precision.in_force(), recording(), asked() as choices:
        run(work, "triton", work.inputs(precision.dtype), BOTH)
    return list({choice.key: choice for choice in choices}.values())


def best_of(choice: Choice, time_ms: Callable[[], float]) -> dict[str, int] | None:
    """The fastest configuration where it is clearly faster than the kernel's own, which comes first."""
    own, *others = choice.candidates()
    times = []
    for config in (own, *others):
        with forced(choice, config):
            try:
                times.append(time_ms())
            except Exception as error:  # a candidate that does not compile or fit is no candidate
                if config is own:
                    raise
                print(f"  {choice.kernel} {config}: {type(error).__name__}", flush=True)
                times.append(float("inf"))
    fastest = min(range(len(times)), key=times.__getitem__)
    return [own, *others][fastest] if times[fastest] <= GAIN * times[0] else None


def tune(
    works: Iterable[Work],
    precisions: Iterable[Precision],
    timer: Callable[[Work, Precision], Callable[[], float]],
    deadline: float,
) -> dict[str, dict[str, dict[str, int]]]:
    """{kernel: {key: configuration}}; stops, with what it has, at `deadline` of time.monotonic."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    seen = set()
    for work in works:
        for precision in precisions:
            for choice in choices_of(work, precision):
                if choice.key in seen:
                    continue
                if time.monotonic() > deadline:
                    print("out of time: the rest keeps the kernels' own choices")
                    return found
                seen.add(choice.key)
                with precision.in_force():
                    config = best_of(choice, timer(work, precision))
                if config is not None:
                    kernel, key = choice.key
                    print(f"{kernel}, {key}: {config}", flush=True)
                    found.setdefault(kernel, {})[key] = config
    return found


def device_timer_of(work: Work, precision: Precision) -> Callable[[], float]:
    with torch.device("cuda"):
        tensors = work.inputs(precision.dtype)
        grads = [torch.randn(shape, dtype=precision.dtype) for shape in work.output_shapes()]
    inputs = device_timer.copies_past_the_cache(tensors, work.least_work(precision.dtype, FORWARD)[1])

    def time_ms() -> float:
        with torch.no_grad():
            return statistics.median(
                device_timer.graph_times(lambda *t: run(work, "triton", list(t), BOTH, grads), inputs, 20)
            )

    return time_ms


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=400, help="stop after this many (%(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("Tuning needs a CUDA GPU: it times the kernels there; torch sees none.")
    deadline = time.monotonic() + arguments.seconds
    works = [w for w in WORK if w.least_work(torch.float32, BOTH)[1] < LARGEST]
    # float16 takes what is best for bfloat16, TF32 what is best for float32
    precisions = [p for p in PRECISIONS if p.name in ("float32", "bfloat16")]
    arch = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    tried = launches.of_works(works, precisions, candidates=True)
    tasks = [(launch, arch) for launch in tried]
    compiler.compile_all(tasks, workers=os.cpu_count() or 1, seconds=arguments.seconds / 2)
    found = tune(works, precisions, device_timer_of, deadline)
    for keys in found.values():
        keys |= {key.replace("bfloat16", "float16"): config for key, config in keys.items() if "bfloat16" in key}
    path = path_of(torch.cuda.get_device_name())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{sum(map(len, found.values()))} configurations written to {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
