"""Do the host work of an operation once per kind of call. Later calls only allocate, collect addresses and launch.

A kind of call is given by the sizes, strides, dtypes, alignment and device of its tensors, its other arguments, and
torch's setting of TF32. The first two calls of a kind run the operation's function as written. The second
call takes notes of the function's launches, with their compiled kernels, and of its calls of torch. Later calls repeat
the notes on their own tensors.

Therefore the work of a function must depend only on the kind of call and on the conditions in `is_usual`. A function
with `any_floats` passes its floats to kernels and does not compute with them: then they do not belong to the kind, and
may differ from call to call. A function that does something that notes cannot repeat always runs as written.
"""

import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_map

from .device_functions import INTERPRETED
from .launch import device_guard, input_precision, is_watched
from .notes import Called, Launched, Notes, Number

MOST_PROGRAMS = 1000  # per operation; the next program replaces all of them
SEEN, NOT_REPEATABLE = "seen once", "not repeatable"  # in place of a program
_ALIGNMENT = 256  # bytes, of every buffer in the scratch memory of a call
_knobs, _triton = triton.knobs, triton.runtime.driver
_shape_and_dtype = operator.attrgetter("shape", "dtype")


class Buffer(NamedTuple):
    """Memory that a call allocates as a tensor, because torch or the caller uses this tensor."""

    slot: int  # of the memory
    form: int  # slot of the tensor
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Planned(NamedTuple):
    """A step of a program, the buffers that it is the first to use, and the slots that it is the last to use."""

    step: Called | Launched
    needed: list[Buffer]
    freed: list[int]


class Program:
    """The steps of one kind of call: allocations, launches, and the calls of torch that results depend on."""

    def __init__(self, notes: Notes, results: Tensor | list[Tensor]):
        self.returns_list = not isinstance(results, Tensor)
        self.results = [notes.slot_of(t) for t in ([results] if isinstance(results, Tensor) else results)]
        self.count = len(notes.tensors)
        self.buffers: list[Buffer] = []
        self.scratch: list[tuple[int, int]] = []  # (slot, first byte) of memory that only kernels use, in one buffer
        self.scratch_bytes = 0
        self.scratch_device: torch.device | None = None

        seen = {slot for s in notes.steps if isinstance(s, Called) and not s.is_view for slot in s.inputs}
        seen.update(self.results)  # only the addresses of all other tensors count
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
            self.buffers.append(Buffer(slot, form, t.size(), t.stride(), t.dtype, t.device))

        steps: list[Called | Launched] = []
        for step in reversed(notes.steps):
            if isinstance(step, Called) and step.is_view:
                if seen.isdisjoint(step.results):
                    continue
                seen.update(step.inputs)
            steps.insert(0, step)

        # memory is allocated before the first step that uses it, and freed after the last, as in the function
        uses = [{notes.roots[slot] for slot in step.slots} for step in steps]
        first = {root: place for place, used in reversed([*enumerate(uses)]) for root in used}
        last = {root: place for place, used in enumerate(uses) for root in used}
        for slot in self.results:
            last.pop(notes.roots[slot], None)
        made = range(notes.given, self.count)
        self.unused = [buffer for buffer in self.buffers if buffer.slot not in first]
        self.plan = [
            Planned(
                step,
                needed=[buffer for buffer in self.buffers if first.get(buffer.slot) == place],
                freed=[slot for slot in made if last.get(notes.roots[slot]) == place],
            )
            for place, step in enumerate(steps)
        ]

    def run(
        self, tensors: list[Tensor], addresses: list[int], floats: list[float], stream: int
    ) -> Tensor | list[Tensor]:
        """Repeat the call on these tensors, whose addresses are given."""
        missing = self.count - len(tensors)
        given = tensors[0]
        tensors += [given] * missing  # a slot holds this tensor before it is filled and after it is freed
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
            if isinstance(step, Launched):
                step.run(stream, addresses, floats)
            else:
                step.run(tensors, addresses)
            for slot in freed:
                tensors[slot] = given
        results = [tensors[slot] for slot in self.results]
        return results if self.returns_list else results[0]


def _allocate(buffers: list[Buffer], tensors: list[Tensor], addresses: list[int]) -> None:
    for slot, form, size, stride, dtype, device in buffers:
        tensors[form] = t = torch.empty_strided(size, stride, dtype=dtype, device=device)
        addresses[slot] = t.data_ptr()


class Replayed:
    """An operation of this backend: a function whose calls are repeated from notes where possible.

    Gradients of outputs, the first arguments, may have any strides. The other tensors are made contiguous, because an
    exported program may pass other strides.

    Args:
        function: The function of the operation.
        any_floats: True if the floats of a call do not belong to its kind.
    """

    def __init__(self, function: Callable, any_floats: bool = False):
        self.function = function
        self.any_floats = any_floats
        self.any_strides = sum(name.startswith("grad") for name in inspect.signature(function).parameters)
        self.programs: dict[tuple, Program | str] = {}

    def __call__(self, *args: Any) -> Any:
        """Return the results of the function for these arguments."""
        tensors, floats, others = _by_kind(args)
        if not is_usual() or tensors[0].is_meta:
            return self.function(*self.contiguous(args))
        strides = None
        if not all(map(Tensor.is_contiguous, tensors)):
            args = self.contiguous(args)
            tensors, floats, others = _by_kind(args)
            strides = tuple(map(Tensor.stride, tensors))
        if not self.any_floats:
            others, floats = others + floats, []
        addresses = list(map(Tensor.data_ptr, tensors))
        low = functools.reduce(operator.or_, addresses) & 15  # Triton compiles other kernels if it is not 0
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
        if not isinstance(program, Program):
            return self.first_calls(key, program, args, tensors, floats)
        if index == current:
            return program.run(tensors, addresses, floats, driver.get_current_stream(index))
        with device_guard(device):
            return program.run(tensors, addresses, floats, driver.get_current_stream(index))

    def contiguous(self, args: Sequence) -> tuple:
        """Return the arguments with contiguous tensors behind the gradients of outputs."""
        first = self.any_strides
        rest = tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, tuple(args[first:]))
        return *args[:first], *rest

    def first_calls(
        self, key: tuple, known: str | None, args: Sequence, tensors: list[Tensor], floats: list[float]
    ) -> Tensor | list[Tensor]:
        """Call the function, and take notes in the second call. Sizes that occur only once are not worth notes."""
        if known == NOT_REPEATABLE:
            return self.function(*args)
        if known is None:
            if len(self.programs) >= MOST_PROGRAMS:
                self.programs.clear()
            self.programs[key] = SEEN
            return self.function(*args)
        tensors = _distinct(tensors)
        rest, numbers = iter(tensors), map(Number, floats, itertools.count())

        def own(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return next(rest)
            return next(numbers) if type(leaf) is float and self.any_floats else leaf

        arguments = tree_map(own, tuple(args))
        with Notes(tensors, bool(floats)) as notes:
            results = self.function(*arguments)
        self.programs[key] = Program(notes, results) if notes.are_complete else NOT_REPEATABLE
        return results


def _by_kind(args: Sequence) -> tuple[list[Tensor], list[float], list]:
    """Return the tensors, the floats, and all other arguments with marks in the places of the tensors."""
    tensors: list[Tensor] = []
    floats: list[float] = []
    others: list[Any] = []
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
    """Return distinct objects. Later calls may pass two tensors where this call passes one tensor twice."""
    seen: set[int] = set()
    found = []
    for t in tensors:
        found.append(t.detach() if id(t) in seen else t)
        seen.add(id(t))
    return found


def is_usual() -> bool:
    """Return True if launches are made as usual: not interpreted, recorded, tuned, profiled or debugged."""
    if INTERPRETED or is_watched():
        return False
    runtime = _knobs.runtime
    if runtime.debug or runtime.add_stages_inspection_hook or _knobs.compilation.instrumentation_mode:
        return False
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # chains of hooks, or hooks
    return not (getattr(enter, "calls", enter) or getattr(leave, "calls", leave))
