"""Launches as data, without tensors, in a file of one line per launch.

A `Launch` names a kernel and everything that its machine code depends on: the kinds of its arguments as Triton
specialises them, its constexprs and its options. tests/triton/launches.json holds the launches of the tests and of the
paper's shapes. record_launches.py writes this file, and compile_table.py compiles its launches.

    kind of an argument    written as
    tensor                 its dtype, "fp32"; "fp32-" where its address is no multiple of 16
    int                    "1", "16" (a multiple of 16) or "n"; "16L" and "nL" for more than 32 bits; "int" and
                           "intL" for a parameter that the kernel does not specialise
    float, bool, None      "float", "bool", "None"
    tuple                  the kinds of its members in parentheses
"""

import ast
import importlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import astuple
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.support.step_work import LAUNCHED, run
from benchmarks.support.work import BOTH, PRECISIONS, Precision, Work
from mop_kernels.triton_kernels.device_functions import Phm
from mop_kernels.triton_kernels.launch import Choice, asked, forced, recording
from mop_kernels.triton_kernels.launch import Launch as Made

PACKAGE = "mop_kernels.triton_kernels"
FILE = Path(__file__).resolve().parents[2] / "tests" / "triton" / "launches.json"
DTYPES = {
    **{torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"},
    **{torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.bool: "i1"},
}
CONSTANTS = {
    **{"None": None, "bool": True, "float": 0.5},
    **{"1": 1, "16": 16, "n": 7, "16L": 2**33, "nL": 2**33 + 7, "int": 7, "intL": 2**33 + 7},
}


class Launch(NamedTuple):
    """One specialisation of a kernel. kernel: "module.function"; meta: constexprs and options, sorted by name."""

    kernel: str
    arguments: tuple[str | tuple, ...]
    meta: tuple[tuple[str, Any], ...]

    @property
    def function(self) -> Any:
        """The jitted function."""
        module, name = self.kernel.split(".")
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)

    @property
    def dtype(self) -> str:
        """The dtype of the first tensor; "tf32" for float32 with TF32 products."""
        first = next(kind for kind in flat(self.arguments) if kind not in CONSTANTS)
        return "tf32" if dict(self.meta).get("PRECISION") == "tf32" else first.removesuffix("-")

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.meta)
        return f"{self.kernel}{text_of(self.arguments)} {values}"


class Recorded(NamedTuple):
    """A launch, its origin, and the seconds of its compilation if measured.

    The origin is the id of a test, or "operation, shape, dtype" for a work of support/step_work.py.
    """

    launch: Launch
    origin: str
    seconds: float | None = None


def kind(argument: Any, specialised: bool = True) -> str | tuple:
    """Return the kind of one argument.

    Args:
        argument: A run-time argument of a kernel.
        specialised: False for a parameter in the kernel's `do_not_specialize`.

    Raises:
        TypeError: No kernel takes such an argument.
    """
    if isinstance(argument, torch.Tensor) and argument.dtype in DTYPES:
        # a tensor without memory counts as an allocation of its own
        aligned = argument.device.type == "meta" or argument.data_ptr() % 16 == 0
        return DTYPES[argument.dtype] + ("" if aligned else "-")
    if argument is None or isinstance(argument, bool):
        return "None" if argument is None else "bool"
    if isinstance(argument, int):
        size = "1" if argument == 1 else "16" if argument % 16 == 0 else "n"
        return (size if specialised else "int") + ("" if -(2**31) <= argument < 2**31 else "L")
    if isinstance(argument, float):
        return "float"
    if isinstance(argument, tuple):
        return tuple(kind(member, specialised) for member in argument)
    known = f"a tensor of {', '.join(DTYPES.values())}, a number, None or a tuple of such"
    raise TypeError(f"a kernel's argument must be {known}; got a {type(argument).__name__}. Add it to launches.kind.")


def example(kind: str | tuple) -> Any:
    """Return an argument of this kind: a small tensor, a number, a tuple."""
    if isinstance(kind, tuple):
        return tuple(map(example, kind))
    if kind in CONSTANTS:
        return CONSTANTS[kind]
    dtype = next(dtype for dtype, name in DTYPES.items() if name == kind.removesuffix("-"))
    two = torch.empty(2, dtype=dtype, device="cpu")
    return two[1:] if kind.endswith("-") else two[:1]


def flat(kinds: Iterable[str | tuple]) -> list[str]:
    """Return all kinds, with the kinds in tuples."""
    return [k for kind in kinds for k in (flat(kind) if isinstance(kind, tuple) else [kind])]


def of(made: Made) -> Launch:
    """Return a launch of mop_kernels as data."""
    function = made.kernel.fn
    name = f"{function.__module__.removeprefix(PACKAGE + '.')}.{function.__name__}"
    parameters = [p for p in made.kernel.params if not p.is_constexpr]
    kinds = (kind(a, not p.do_not_specialize) for a, p in zip(made.arguments, parameters, strict=True))
    return Launch(name, tuple(kinds), tuple(sorted(made.meta.items())))


def text_of(kinds: str | tuple) -> str:
    """Return kinds as text, tuples in parentheses."""
    return kinds if isinstance(kinds, str) else f"({' '.join(map(text_of, kinds))})"


def kinds_of(text: str) -> tuple:
    """Return the kinds that `text_of` wrote for the arguments of a launch."""
    quoted = re.sub(r"[^\s()]+", lambda word: f'"{word[0]}",', text)
    return ast.literal_eval(quoted.replace(")", "),").removesuffix(","))


def of_works(
    works: Iterable[Work] = LAUNCHED,
    precisions: Iterable[Precision] = PRECISIONS,
    candidates: bool = False,
) -> list[Recorded]:
    """Return the distinct launches of works, found on tensors without memory.

    Args:
        works: Operations, each at one size.
        precisions: Dtypes; float32 also with TF32.
        candidates: True adds the launches of every configuration that `make tune` tries.
    """
    found: dict[Launch, Recorded] = {}
    for work, precision in product(works, precisions):
        for launch in map(of, made_by(work, precision, candidates=candidates)):
            found.setdefault(launch, Recorded(launch, f"{work.name}, {precision.name}"))
    return list(found.values())


def choices_of(work: Work, precision: Precision) -> list[Choice]:
    """Return the distinct choices of one call, forward and backward, without running it."""
    with torch.device("meta"), precision.in_force(), recording(), asked() as found:
        run(work, work.inputs(precision.dtype), BOTH)
    return list({choice.key: choice for choice in found}.values())


def made_by(work: Work, precision: Precision, direction: str = BOTH, candidates: bool = False) -> list[Made]:
    """Return all launches of one work as mop_kernels makes them, on tensors of the device "meta"."""
    with torch.device("meta"), precision.in_force(), recording() as made:
        tensors = work.inputs(precision.dtype)
        run(work, tensors, direction)
        for choice in choices_of(work, precision) if candidates else ():
            for config in choice.candidates():
                with forced(choice, config):
                    run(work, tensors, direction)
    return made


# The file: tables of repeated entries, then one line per launch, sorted. A change of one kernel is a small diff.

TABLES = ("kernels", "arguments", "maps", "origins")


def write(recorded: Iterable[Recorded], path: Path = FILE) -> None:
    """Write launches to a file."""
    tables: dict[str, dict[str, int]] = {name: {} for name in TABLES}

    def place(table: str, entry: Any) -> int:
        """Return the line of an entry in its table; a new entry gets the next line."""
        return tables[table].setdefault(json.dumps(entry), len(tables[table]))

    def plain(value: Any) -> Any:
        return {"map": place("maps", astuple(value))} if isinstance(value, Phm) else value

    lines = []
    for made, origin, seconds in sorted(recorded, key=lambda r: (str(r.launch), r.origin)):
        names, values = zip(*made.meta)
        entries = {"kernels": [made.kernel, *names], "arguments": text_of(made.arguments), "origins": origin}
        places = [place(table, entry) for table, entry in entries.items()]
        lines.append(json.dumps([*places, seconds, *map(plain, values)]))
    blocks = {**{name: list(table) for name, table in tables.items()}, "launches": lines}
    text = ",\n".join(f'"{name}": [\n' + ",\n".join(entries) + "\n]" for name, entries in blocks.items())
    path.write_text(f"{{\n{text}\n}}\n")


def read(path: Path = FILE) -> list[Recorded]:
    """Return the launches of a file."""
    found = json.loads(path.read_text())

    def value(written: Any) -> Any:
        return Phm(*found["maps"][written["map"]]) if isinstance(written, dict) else written

    recorded = []
    for kernel, arguments, origin, seconds, *values in found["launches"]:
        name, *names = found["kernels"][kernel]
        meta = tuple(zip(names, map(value, values), strict=True))
        made = Launch(name, kinds_of(found["arguments"][arguments]), meta)
        recorded.append(Recorded(made, found["origins"][origin], seconds))
    return recorded


# The sample that the tests compile: the cheapest launch of each kind.

ARCHES = (90, 80)
SECONDS = 0.5  # assumed for a kernel without measured compilations


def choices(launch: Launch) -> set[tuple]:
    """Return the choices of code in a kernel: dtypes, flags, names, and absent, unaligned or long arguments.

    Each is a feature of its own, as is a mixture of floating dtypes: all combinations would triple the compilations of
    a sample. `make compile-launches` compiles them.
    """
    kinds = flat(launch.arguments)
    flags = tuple((name, value) for name, value in launch.meta if isinstance(value, bool | str))
    dtypes = {kind.removesuffix("-") for kind in kinds if kind not in CONSTANTS}
    mixed = len({dtype for dtype in dtypes if dtype.startswith(("fp", "bf"))}) > 1
    rare = tuple(any(kind.endswith(mark) for kind in kinds) for mark in ("None", "-", "L"))
    found = *flags, *enumerate((*rare, mixed)), *dtypes, ("first", launch.dtype)
    return {(launch.kernel, choice) for choice in found}


def features(recorded: Recorded) -> set[tuple]:
    """Return the features of a launch that a sample must contain.

    A sample contains all choices of code, and every operation, block and option of the paper's shapes.
    """
    launch, origin = recorded.launch, recorded.origin
    found: set[tuple[Any, ...]] = choices(launch)
    if "::" in origin:  # a test
        return found
    found.add((origin.partition(",")[0],))
    for name, value in launch.meta:
        if isinstance(value, Phm):
            blocks = {field: number for field, number in vars(value).items() if field.startswith("block")}
            found |= {(launch.kernel, name, field, number) for field, number in blocks.items()}
        elif name.startswith(("BLOCK", "num")):
            found.add((launch.kernel, name, value))
    return found


def sample(recorded: list[Recorded]) -> list[tuple[Recorded, int]]:
    """Return launches, each with an architecture, that together have all features.

    The launch that adds most features per second of its compilation is chosen next, for the architecture that has fewer
    launches. Each kernel is compiled for every architecture.
    """
    seconds = _seconds(recorded)
    wanted = [(r, arch, features(r) | {(r.launch.kernel, arch)}) for r in recorded for arch in ARCHES]
    left = set().union(*(some for _, _, some in wanted))
    chosen: list[tuple[Recorded, int]] = []
    used: Counter[int] = Counter()
    while left:
        r, arch, some = max(wanted, key=lambda task: (len(task[2] & left) / seconds[task[0].launch], -used[task[1]]))
        chosen.append((r, arch))
        used[arch] += 1
        left -= some
    return chosen


def _seconds(recorded: list[Recorded]) -> dict[Launch, float]:
    """Return the seconds of each compilation, at least 0.1. The kernel's median stands for unmeasured seconds."""
    measured = defaultdict(list)
    for r in recorded:
        if r.seconds is not None:
            measured[r.launch.kernel].append(r.seconds)
    usual = {kernel: median(numbers) for kernel, numbers in measured.items()}
    seconds = {r.launch: usual.get(r.launch.kernel, SECONDS) if r.seconds is None else r.seconds for r in recorded}
    return {launch: max(0.1, number) for launch, number in seconds.items()}
