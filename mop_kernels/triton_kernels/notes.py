"""Take notes of one call of an operation's function: its calls of torch, and its launches of compiled kernels."""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ALLOCATIONS = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
)
_LAUNCHER = ("gridX", "gridY", "gridZ", "stream", "function")  # Triton 3.6 takes the other arguments as *args
_LAUNCHER_REST = ("kernel_metadata", "launch_metadata", "launch_enter_hook", "launch_exit_hook")


class Slot(int):
    """The number of a tensor of a call. Notes hold slots instead of tensors."""


class Number(float):
    """A float argument of the noted call, and its place among the floats. It refuses arithmetic.

    The result of arithmetic would stay the same in all later calls. Therefore a call with a float argument is
    repeatable only if kernels receive no other float and torch receives none.
    """

    place: int

    def __new__(cls, value: float, place: int) -> "Number":
        """Return the float `value` with its place."""
        number = super().__new__(cls, value)
        number.place = place
        return number

    def _refuse(self, *others: object) -> NoReturn:
        raise TypeError("a float argument of a repeatable function must go to kernels, not into arithmetic")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse


class Unrepeatable(Exception):
    """Raised when a call does something that notes cannot repeat."""


class Called(NamedTuple):
    """A call of torch, and the slots of its results."""

    function: Callable
    arguments: Sequence
    options: dict[str, Any]
    results: tuple[int, ...]
    is_view: bool

    @property
    def inputs(self) -> list[int]:
        """The slots of the tensors that the call reads."""
        return [leaf for leaf in tree_leaves((self.arguments, self.options)) if type(leaf) is Slot]

    @property
    def slots(self) -> list[int]:
        """The slots of all tensors that the call reads or returns."""
        return [*self.inputs, *self.results]

    def run(self, tensors: list[Tensor], addresses: list[int]) -> None:
        """Repeat the call. Put its results and their addresses at their slots."""
        found = self.function(*_filled(self.arguments, tensors), **_filled(self.options, tensors))
        for slot, t in zip(self.results, (found,) if isinstance(found, Tensor) else found):
            tensors[slot] = t
            addresses[slot] = t.data_ptr()


class Pointer(NamedTuple):
    """A pointer that a kernel receives: the address of a tensor plus an offset in bytes."""

    slot: int
    offset: int


class Launched(NamedTuple):
    """A launch: the arguments of the compiled kernel's launcher, and the places of the arguments that calls change."""

    kernel: Any  # kept alive: Triton unloads a kernel without references
    grid: Sequence[int]
    arguments: list
    pointers: list[tuple[int, int, int]]  # place, slot, offset
    starts: list[tuple[int, operator.itemgetter]]  # place, getter of a tuple of addresses
    tuples: list[tuple[int, tuple]]  # place, entries of any other tuple with pointers
    floats: list[tuple[int, int]]  # place, number of the float

    @property
    def slots(self) -> list[int]:
        """The slots of the tensors whose memory the kernel reads or writes."""
        flat = [entry for a in self.arguments for entry in (a if type(a) is tuple else (a,))]
        return [entry.slot for entry in flat if type(entry) is Pointer]

    def run(self, stream: int, addresses: list[int], floats: list[float]) -> None:
        """Repeat the launch for the tensors at these addresses."""
        arguments = self.arguments.copy()
        for place, slot, offset in self.pointers:
            arguments[place] = addresses[slot] + offset
        for place, take in self.starts:
            arguments[place] = take(addresses)
        for place, entries in self.tuples:
            arguments[place] = tuple([addresses[e[0]] + e[1] if type(e) is Pointer else e for e in entries])
        for place, number in self.floats:
            arguments[place] = floats[number]
        kernel = self.kernel
        kernel.run(*self.grid, stream, kernel.function, kernel.packed_metadata, None, None, None, *arguments)


class Notes(TorchDispatchMode):
    """Note the calls of torch and the launches in the block, made by a function of these tensors.

    Args:
        tensors: The arguments of the function, distinct objects.
        has_floats: True if it has float arguments (`Number`).
    """

    def __init__(self, tensors: list[Tensor], has_floats: bool):
        super().__init__()
        self.are_complete = True
        self.has_floats = has_floats
        self.tensors = list(tensors)  # by slot
        self.given = len(tensors)
        self.slots = {id(t): slot for slot, t in enumerate(tensors)}
        self.roots = list(range(len(tensors)))  # by slot: the slot of the tensor that owns its memory
        self.allocations: list[int] = []
        self.steps: list[Called | Launched] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch 2.13 not to import Dynamo, which takes seconds, to keep it out of the dispatch below."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        if self.are_complete:
            try:
                self._note_call(function, args, kwargs or {}, results)
            except Unrepeatable:
                self.are_complete = False
        return results

    def _note_call(self, function: Any, args: Sequence, kwargs: dict[str, Any], results: Any) -> None:
        found = (results,) if isinstance(results, Tensor) else results
        if not isinstance(found, (list, tuple)) or not all(isinstance(t, Tensor) for t in found):
            raise Unrepeatable
        arguments, options = self._noted(args, self.slot_of), self._noted(kwargs, self.slot_of)
        new = [t for t in found if id(t) not in self.slots]
        if not new and not function._schema.is_mutable:
            return  # .to() and similar, of a tensor that already has the form
        is_view = len(new) == 1 and isinstance(args[0], Tensor) and _share_memory(args[0], new[0])
        for t in new:
            self.slots[id(t)] = len(self.tensors)
            self.roots.append(self.roots[arguments[0]] if is_view else len(self.tensors))
            self.tensors.append(t)
        if function in _ALLOCATIONS:
            self.allocations.append(self.slot_of(results))
        else:
            self.steps.append(Called(function, arguments, options, tuple([self.slot_of(t) for t in found]), is_view))

    def note_launch(
        self, jitted: Any, kernel: Any, grid: tuple[int, ...], arguments: tuple, meta: dict[str, Any]
    ) -> None:
        """Note a launch of the compiled `kernel` that has just been made."""
        given = dict(zip(jitted.arg_names, arguments)) | meta
        try:
            if not is_known(kernel):
                raise Unrepeatable
            values = [self._noted(given.get(p.name, p.default), self._pointer) for p in jitted.params]
        except Unrepeatable:
            self.are_complete = False
            return
        launched = Launched(kernel, (*grid, 1, 1)[:3], values, [], [], [], [])
        for place, value in enumerate(values):
            if type(value) is Pointer:
                launched.pointers.append((place, *value))
            elif type(value) is Number:
                launched.floats.append((place, value.place))
            elif type(value) is tuple and any(type(p) is Pointer for p in value):
                if len(value) > 1 and all(type(p) is Pointer and p.offset == 0 for p in value):
                    launched.starts.append((place, operator.itemgetter(*[p.slot for p in value])))
                else:
                    launched.tuples.append((place, value))
        self.steps.append(launched)

    def slot_of(self, tensor: Tensor) -> Slot:
        """Return the slot of a tensor that the function received or made."""
        if id(tensor) not in self.slots:
            raise Unrepeatable
        return Slot(self.slots[id(tensor)])

    def _pointer(self, tensor: Tensor) -> Pointer:
        root = self.roots[self.slot_of(tensor)]
        return Pointer(root, tensor.data_ptr() - self.tensors[root].data_ptr() if tensor.numel() else 0)

    def _noted(self, value: Any, stand_in: Callable[[Tensor], Any]) -> Any:
        """Return an argument with stand_in(tensor) in place of each tensor."""

        def note(leaf: Any) -> Any:
            if type(leaf) is float and self.has_floats:
                raise Unrepeatable
            return stand_in(leaf) if isinstance(leaf, Tensor) else leaf

        return tree_map(note, value)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def is_known(kernel: Any) -> bool:
    """Return True if `Launched.run` may launch the compiled kernel: with Triton 3.6 to 3.9."""
    if not all(hasattr(kernel, name) for name in ("run", "function", "packed_metadata")):
        return False
    names = tuple(inspect.signature(type(kernel.run).__call__).parameters)[1:]
    return names in ((*_LAUNCHER, "args"), (*_LAUNCHER, *_LAUNCHER_REST, "args"))


def _filled(value: Any, tensors: list[Tensor]) -> Any:
    """Return a noted argument of a call of torch with the tensors of this call. Faster than tree_map."""
    if type(value) is Slot:
        return tensors[value]
    if type(value) in (list, tuple):
        return type(value)([_filled(v, tensors) for v in value])
    return {k: _filled(v, tensors) for k, v in value.items()} if type(value) is dict else value
