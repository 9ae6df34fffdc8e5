"""Time the host's cost of the GPU backends without a GPU: microseconds of one public call of mop_ffn, of two commits.

    python -m benchmarks.host_cost --against COMMIT [--cuda build/inplace/mop_kernels._C_cuda] [--keep]

Stubs stand for CUDA's driver and runtime (tests/launch_path, tests/cuda/stub_runtime.py): they take a launch, and
nothing runs. Backend "triton" takes the paper's bank; "cpu" and, with nvcc's objects, "cuda" take a tiny bank. One
process per commit answers in turn, in many short rounds, so that a disturbance of the machine disturbs both commits.
The command prints tables of all rounds; --keep writes them to benchmarks/results. malloc keeps its memory, as torch's
allocator on a GPU does.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path

from benchmarks.support import two_trees
from benchmarks.support.two_trees import HERE, ROOT

STUBS = (ROOT / "tests" / "launch_path", ROOT / "tests" / "cuda")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
DIRECTIONS = ("forward without gradients", "forward", "forward + backward")
CALLS = 20  # per round


def serve() -> None:
    """Answer each line "backend|direction" with the milliseconds of one call."""
    import stub_driver
    import torch

    import mop_kernels as mk
    from mop_kernels import testing

    torch.set_num_threads(1)
    if os.environ.get("MOP_KERNELS_EMULATE_CUDA"):
        import stub_runtime

        stub_runtime.Runtime(os.environ["MOP_KERNELS_EMULATE_CUDA"]).c.stub_note_launches(0)

    @cache
    def call_of(backend: str, direction: str) -> Callable[[], object]:
        drawn = testing.mop_inputs(testing.BANKS["paper" if backend == "triton" else "one_row"], torch.float32)
        tensors = [t.requires_grad_() for t in drawn if t is not None]
        x, down, ups = testing.as_mop_arguments(tensors)
        maps = mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups]
        forward = partial(mk.mop_ffn, x, *maps, backend=backend)
        grads = [torch.ones_like(y) for y in forward()]

        def both() -> None:
            torch.autograd.backward(forward(), grads)
            for t in tensors:
                t.grad = None

        calls: list[Callable[[], object]] = [torch.no_grad()(forward), forward, both]
        return calls[DIRECTIONS.index(direction)]

    def answer(backend: str, direction: str) -> float:
        call = call_of(backend, direction)
        for _ in range(5):  # noted, and in the caches again
            call()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1e3 * (time.perf_counter() - start) / CALLS

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        stub = stub_driver.Stub(Path(folder))
        stub.note_launches(False)
        with stub_driver.active(stub):
            two_trees.serve(answer)


def server(tree: Path, cuda: str) -> subprocess.Popen[str]:
    """Start a process that times calls of one source tree, in this tree also those of the CUDA library."""
    environment = {"OMP_NUM_THREADS": "1", "MOP_KERNELS_EMULATE_CUDA": cuda if tree == ROOT else ""}
    return two_trees.start(__file__, tree, **MALLOC, **environment)


def main() -> None:
    """Run the command."""
    parser = two_trees.parser_of("host_cost", __doc__, rounds=200)
    parser.add_argument("--cuda", metavar="FOLDER", type=Path, help="nvcc's objects: time the host functions of CUDA")
    options = parser.parse_args()
    sys.path[:0] = map(str, STUBS)
    if options.serve:
        return serve()
    import stub_driver

    from benchmarks.support import results

    reason = stub_driver.why_not()
    if reason is not None:
        parser.error(reason)
    with tempfile.TemporaryDirectory() as folder:
        library = ""
        if options.cuda is not None:
            import stub_runtime

            library = str(stub_runtime.build(options.cuda, Path(folder)))
        rows = []
        with two_trees.answering(options.against, partial(server, cuda=library), "mop_kernels") as servers:
            for backend, direction in product(("triton", "cpu", *(["cuda"] if library else [])), DIRECTIONS):
                timed = servers if backend != "cuda" else {HERE: servers[HERE]}
                questions = [(process, f"{backend}|{direction}") for process in timed.values()]
                for name, times_ms in zip(timed, two_trees.ask_in_turn(questions, options.rounds)):
                    kind = "ours" if name == HERE else "before"
                    rows.append(results.row_of(f"{backend}: {direction}", name, kind, times_ms))
    two_trees.report("host_cost", rows, keep=options.keep, unit="us")


if __name__ == "__main__":
    main()
