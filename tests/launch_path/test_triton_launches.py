"""What the driver receives from every operation of backend "triton": kernels, grids, parameters, shared memory.

The launches of an operation are known from recording them (`recording`). Here Triton makes them, on CPU tensors that
nothing reads, through its compiled launcher and a driver that notes what arrives. Each call is made three times: as it
is written, while notes are taken, and from the notes (triton_kernels/replay.py).
"""

import ast
import contextlib
from pathlib import Path

import pytest
from launches import CASES, Case, check_call, implementation, module

import mop_kernels as mk

OTHER = {"phm_linear": "weight_once", "lowrank_phm_linear": "three_stages"}  # than local first
_seen: dict[str, set[str]] = {}  # the kernels of each case that has run


@contextlib.contextmanager
def way(case: Case, monkeypatch):
    """Let the linear operations take the way that the case is about."""
    if case.local_first is not None:
        monkeypatch.setattr(
            module(case.op),
            "plan",
            lambda *_: dict(zip(("local_first", OTHER[case.op]), (1, 2) if case.local_first else (2, 1))),
        )
    yield


@pytest.mark.parametrize("name", CASES)
def test_every_launch_arrives(name, stub, monkeypatch):
    case = CASES[name]()
    with way(case, monkeypatch):
        outputs = check_call(stub, case.op, case.forward)
        check_call(stub, f"{case.op}_backward", case.backward(outputs))
    steps = [
        s for op in (case.op, f"{case.op}_backward") for p in implementation(op).programs.values() for s, *_ in p.plan
    ]
    _seen[name] = {step.kernel.name for step in steps if hasattr(step, "kernel")}


def test_every_kernel_was_launched(stub):
    """No kernel of the backend, a jitted function whose name ends with `_kernel`, was left out above."""
    if set(_seen) != set(CASES):
        pytest.skip("needs all cases of test_every_launch_arrives")
    folder = Path(mk.__file__).parent / "triton_kernels"
    found = [ast.walk(ast.parse(path.read_text())) for path in folder.glob("*.py")]
    names = {n.name for nodes in found for n in nodes if isinstance(n, ast.FunctionDef) and n.decorator_list}
    kernels = {name for name in names if name.endswith("_kernel")}
    assert len(kernels) > 10
    assert kernels == set().union(*_seen.values())
