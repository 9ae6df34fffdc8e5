"""Do an operation's host work once per kind of call: later calls only allocate, collect addresses and launch.

A kind of call is given by the sizes, strides, dtypes, alignment and device of its tensors, its other arguments but
floats, and torch's setting of TF32. The first two calls of a kind run the operation's function as it is written. The
second call notes the function's launches, with their compiled kernels, and its calls of torch. Later calls repeat the
notes on their own tensors.

What a function does must therefore depend on nothing but the kind of call and the conditions in `is_usual`. A float
may differ from call to call, because it is handed to kernels and not computed with. A function that does something
which notes cannot repeat always runs as it is written.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import launch_config
from .device_functions import select
from .launch import device_guard, input_precision, is_recording
from .notes import Called, Launched, Notes, Number, slots_in

MOST_PROGRAMS = 1000  # per operation; then all are forgotten
SEEN, NOT_REPEATABLE = "seen once", "not repeatable"  # stand for a program
_ALIGNMENT = 256  # bytes, of every buffer in a call's scratch memory
_INTERPRETED = not isinstance(select, triton.JITFunction)
_knobs, _triton = triton.knobs, triton.runtime.driver
_shape_and_dtype = operator.attrgetter("shape", "dtype")


class Planned(NamedTuple):
    """A step of a program, the buffers that it is the first to use, and the slots that it is the last to use."""

    step: Called | Launched
    needed: list[tuple]
    freed: list[int]


class Program:
    """The steps of one kind of call: allocations, launches, and the calls of torch that results depend on."""

    def __init__(self, notes: Notes, results: Tensor | list[Tensor]):
        self.gives_list = not isinstance(results, Tensor)
        self.results = [notes.slot_of(t) for t in (results if self.gives_list else [results])]
        self.count = len(notes.tensors)
        self.buffers: list[tuple] = []  # (slot, slot of the tensor, size, stride, dtype, device) of what others see
        self.scratch: list[tuple[int, int]] = []  # (slot, first byte) of what only kernels see, in one buffer
        self.scratch_bytes = 0
        self.scratch_device = None

        seen = {slot for s in notes.steps if type(s) is Called and not s.is_view for slot in slots_in(s[1:3])}
        seen.update(self.results)  # of all others only the addresses count
        for slot in notes.allocations:
            forms = [k for k in seen if notes.roots[k] == slot]
            t = notes.tensors[slot]
            if not forms:
                self.scratch.append((slot, self.scratch_bytes))
                self.scratch_bytes += -(-t.nbytes // _ALIGNMENT) * _ALIGNMENT
                self.scratch_device = t.device
                continue
            only = notes.tensors[forms[0]]
            form = forms[0] if len(forms) == 1 and only.numel() == t.numel() and only.is_contiguous() else slot
            seen.discard(form)
            t = notes.tensors[form]
            self.buffers.append((slot, form, t.size(), t.stride(), t.dtype, t.device))

        steps: list[Called | Launched] = []
        for step in reversed(notes.steps):
            if type(step) is Called and step.is_view:
                if seen.isdisjoint(step.results):
                    continue
                seen.update(slots_in(step.arguments))
            steps.insert(0, step)

        # memory is taken before the first step that uses it, and given up after the last, as the function does
        uses = [{notes.roots[slot] for slot in step.slots} for step in steps]
        first = {root: place for place, used in reversed([*enumerate(uses)]) for root in used}
        last = {root: place for place, used in enumerate(uses) for root in used}
        for slot in self.results:
            last.pop(notes.roots[slot], None)
        made = range(notes.given, self.count)
        self.unused = [buffer for buffer in self.buffers if buffer[0] not in first]
        self.plan = [
            Planned(
                step,
                needed=[buffer for buffer in self.buffers if first.get(buffer[0]) == place],
                freed=[slot for slot in made if last.get(notes.roots[slot]) == place],
            )
            for place, step in enumerate(steps)
        ]

    def run(self, tensors: list[Tensor], addresses: list[int], floats: list[float], stream: int):
        """Repeat the call on these tensors, whose addresses are given."""
        missing = self.count - len(tensors)
        tensors += [None] * missing
        addresses += [0] * missing
        if self.unused:
            _allocate(self.unused, tensors, addresses)
        if self.scratch_bytes:
            scratch = torch.empty(self.scratch_bytes, dtype=torch.uint8, device=self.scratch_device)
            first = scratch.data_ptr()
            for slot, offset in self.scratch:
                addresses[slot] = first + offset
        for step, needed, freed in self.plan:
            if needed:
                _allocate(needed, tensors, addresses)
            if type(step) is Launched:
                step.run(stream, addresses, floats)
            else:
                step.run(tensors, addresses)
            for slot in freed:
                tensors[slot] = None
        results = [tensors[slot] for slot in self.results]
        return results if self.gives_list else results[0]


def _allocate(buffers: list[tuple], tensors: list[Tensor], addresses: list[int]) -> None:
    for slot, form, size, stride, dtype, device in buffers:
        tensors[form] = t = torch.empty_strided(size, stride, dtype=dtype, device=device)
        addresses[slot] = t.data_ptr()


class Replayed:
    """An operation of this backend: a function whose calls are repeated from notes where possible.

    Gradients of outputs, which come first, may have any strides. The other tensors are made contiguous: an exported
    program may bring them otherwise.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.any_strides = sum(name.startswith("grad") for name in inspect.signature(function).parameters)
        self.programs: dict[tuple, Program | str] = {}

    def __call__(self, *args):
        if not is_usual():
            return self.function(*self.contiguous(args))
        tensors, floats, others = _by_kind(args)
        if tensors[0].is_meta:
            return self.function(*self.contiguous(args))
        strides = None
        if not all(map(Tensor.is_contiguous, tensors)):
            args = self.contiguous(args)
            tensors, floats, others = _by_kind(args)
            strides = tuple(map(Tensor.stride, tensors))
        addresses = list(map(Tensor.data_ptr, tensors))
        low = functools.reduce(operator.or_, addresses) & 15  # Triton has other kernels where it is not 0
        driver = _triton.active
        current, device = driver.get_current_device(), tensors[0].device
        index = current if device.index is None else device.index
        key = (
            input_precision(),
            index,
            device,
            tuple(others),
            tuple(map(_shape_and_dtype, tensors)),
            strides,
            tuple([address & 15 for address in addresses]) if low else None,
        )
        program = self.programs.get(key)
        if type(program) is not Program:
            return self.first_calls(key, program, args, tensors, floats)
        if index == current:
            return program.run(tensors, addresses, floats, driver.get_current_stream(index))
        with device_guard(device):
            return program.run(tensors, addresses, floats, driver.get_current_stream(index))

    def contiguous(self, args: Sequence) -> list:
        """Return the arguments with contiguous tensors, where this is asked for."""
        return [value if place < self.any_strides else _contiguous(value) for place, value in enumerate(args)]

    def first_calls(self, key: tuple, known: str | None, args: Sequence, tensors: list[Tensor], floats: list[float]):
        """Call the function, and take notes in the second call: sizes that come only once are not worth them."""
        if known == NOT_REPEATABLE:
            return self.function(*args)
        if known is None:
            if len(self.programs) >= MOST_PROGRAMS:
                self.programs.clear()
            self.programs[key] = SEEN
            return self.function(*args)
        tensors = _distinct(tensors)
        rest, numbers = iter(tensors), map(Number, floats, range(len(floats)))
        own = []
        for value in args:
            if isinstance(value, (list, tuple)):
                own.append([next(rest) for _ in value])
            elif isinstance(value, Tensor):
                own.append(next(rest))
            else:
                own.append(next(numbers) if type(value) is float else value)
        with Notes(tensors, bool(floats)) as notes:
            results = self.function(*own)
        self.programs[key] = Program(notes, results) if notes.are_complete else NOT_REPEATABLE
        return results


def _by_kind(args: Sequence) -> tuple[list[Tensor], list[float], list]:
    """Return the tensors, the floats, and all other arguments with marks in the places of the tensors."""
    tensors, floats, others = [], [], []
    for value in args:
        if isinstance(value, Tensor):
            tensors.append(value)
            others.append(Tensor)
        elif isinstance(value, (list, tuple)):
            tensors += value
            others.append(len(value))
        elif type(value) is float:
            floats.append(value)
        else:
            others.append(value)
    return tensors, floats, others


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    """Return distinct objects. Later calls may give different tensors in two places of the same tensor."""
    seen: set[int] = set()
    found = []
    for t in tensors:
        found.append(t.detach() if id(t) in seen else t)
        seen.add(id(t))
    return found


def _contiguous(value):
    """Return a tensor, or a list of tensors, made contiguous; any other argument as it is."""
    if type(value) is list:
        return [t.contiguous() for t in value]
    return value.contiguous() if isinstance(value, Tensor) else value


def is_usual() -> bool:
    """Tell whether launches are made as always: not interpreted, recorded, tuned, profiled or debugged."""
    if _INTERPRETED or is_recording() or launch_config.is_watched():
        return False
    runtime = _knobs.runtime
    if runtime.debug or runtime.add_stages_inspection_hook or _knobs.compilation.instrumentation_mode:
        return False
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # chains of hooks, or hooks
    return not (getattr(enter, "calls", enter) or getattr(leave, "calls", leave))
