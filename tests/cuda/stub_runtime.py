"""The host functions of csrc/cuda as nvcc compiled them, without a GPU: stub_runtime.c stands for CUDA's runtime.

`build` links nvcc's objects with the stub instead of cudart, as a library that MOP_KERNELS_EMULATE_CUDA may name: then
backend "cuda" takes CPU tensors, and its launches are noted instead of made. As a script, in a process with that
variable, this file makes the calls of test_launches.py and prints what arrived.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def build(objects: Path, folder: Path) -> Path:
    """Return the library made of nvcc's objects in one folder, in another."""
    package = Path(torch.__file__).parent
    flags = ["-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem"]
    flags += [str(package / "include")]
    runtime, registered, library = (folder / name for name in ("runtime.o", "registered.o", "stub_cuda.so"))
    run = lambda *command: subprocess.run(list(map(str, command)), check=True)  # noqa: E731
    run("cc", "-O1", "-fPIC", "-c", HERE / "stub_runtime.c", "-o", runtime)
    run("c++", "-std=c++17", "-DMOP_EMULATE", *flags, "-c", ROOT / "csrc/cuda/register_cuda_ops.cpp", "-o", registered)
    compiled = sorted(objects.glob("*.cu.o"))
    run("c++", "-shared", *compiled, registered, runtime, "-o", library, f"-L{package / 'lib'}", "-ltorch_cpu")
    return library


class _Launch(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_int64),
        ("allowed_shared", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
        ("device", ctypes.c_int),
    ]


class Runtime:
    """The stub in a library that this process has loaded."""

    def __init__(self, library: str):
        self.c = ctypes.CDLL(library)
        self.c.stub_launch.restype = ctypes.POINTER(_Launch)
        self.c.stub_kernel.restype = ctypes.c_char_p

    def taken(self) -> list[dict]:
        """Return the launches since the last call."""
        found = []
        for k in range(self.c.stub_count()):
            raw = self.c.stub_launch(k).contents
            launch = {name: getattr(raw, name) for name, _ in _Launch._fields_}
            found.append(launch | {"name": raw.name.decode(), "grid": list(raw.grid), "block": list(raw.block)})
        self.c.stub_clear()
        return found

    def use(self, device: int, stream: int) -> None:
        """Let tensors lie on this device, whose current stream is that."""
        self.c.stub_set_device_of_tensors(device)
        self.c.stub_set_stream(device, ctypes.c_void_p(stream))


def works() -> Iterator[tuple[str, object, torch.dtype, torch.Tensor | None]]:
    """Yield (name, Work, dtype, experts) of every operation at a small and at a large size."""
    from benchmarks.support.work import Work
    from mop_kernels.testing import BANKS, SHAPES, Shape

    shapes = {
        "phm_weight": {"small": SHAPES["odd"], "large": SHAPES["paper_down"]},
        "phm_linear": {"few rows": SHAPES["odd"], "many rows": Shape(3000, 4, 4, 4, 3, 8, 1)},
        "lowrank_phm_linear": {"few rows": SHAPES["odd"], "many rows": Shape(3000, 4, 4, 4, 16, 8, 1)},
        "mop_ffn": {"small": BANKS["odd"], "paper": BANKS["paper"], "wide": BANKS["wide"]},
    }
    for op, sizes in shapes.items():
        for label, shape in sizes.items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                yield f"{op}, {label}", Work(op, label, shape), dtype, None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield "mop_ffn, of one expert", Work("mop_ffn", "", BANKS["odd"]), dtype, torch.tensor([1])


def main() -> None:
    from benchmarks.support.work import Work
    from mop_kernels import ops, testing
    from mop_kernels.testing import BANKS, SHAPES

    runtime = Runtime(os.environ["MOP_KERNELS_EMULATE_CUDA"])
    kernels = [runtime.c.stub_kernel(k).decode() for k in range(runtime.c.stub_num_kernels())]
    calls = []

    def state() -> dict:
        return {"device": runtime.c.stub_current_device(), "guards": runtime.c.stub_guards()}

    for name, work, dtype, experts in works():
        tensors = work.inputs(dtype)
        forward = work.forward_arguments(tensors)
        if experts is not None:
            forward = (*forward[:-1], experts)
        outputs = ops.get(work.op, "reference")(*forward)
        grads = [torch.ones_like(y) for y in (outputs if isinstance(outputs, list) else [outputs])]
        backward = work.backward_arguments(tensors, grads)
        if experts is not None:
            backward = (*backward[:-2], experts, backward[-1])
        for direction, args in (("forward", forward), ("backward", backward)):
            device, stream = len(calls) % 3, 0x100 * (1 + len(calls))
            runtime.use(device, stream)
            runtime.taken()
            results = ops.get(work.op if direction == "forward" else f"{work.op}_backward", "cuda")(*args)
            results = list(results) if isinstance(results, (list, tuple)) else [results]
            about = {"call": f"{name}, {direction}", "dtype": str(dtype).removeprefix("torch."), "op": work.op}
            about["shapes"] = [list(t.shape) for t in results]
            about["expected"] = [list(t.shape) for t in (grads if direction == "forward" else tensors)]
            calls.append(about | {"device": device, "stream": stream, "launches": runtime.taken(), "after": state()})

    def launches_of(op: str, *args) -> list[dict]:
        ops.get(op, "cuda")(*args)
        return runtime.taken()

    runtime.use(0, 0)
    none = SHAPES["odd"]._replace(rows=0)
    empty = {
        op: launches_of(op, *Work(op, "", shape).forward_arguments(Work(op, "", shape).inputs(torch.float32)))
        for op, shape in (("phm_linear", none), ("lowrank_phm_linear", none), ("mop_ffn", BANKS["no_row"]))
    }
    rule, local = testing.linear_inputs(SHAPES["paper_down"], torch.float32)[1:3]
    groups = {k: launches_of("phm_weight", rule.expand(k, -1, -1, -1), local.expand(k, -1, -1, -1)) for k in (1, 2, 6)}
    runtime.c.stub_fail(1)
    try:
        ops.get("phm_weight", "cuda")(rule, local)
        error = None
    except RuntimeError as found:
        error = str(found)
    found = {"kernels": kernels, "calls": calls, "empty": empty, "groups": groups, "error": error, "after": state()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
