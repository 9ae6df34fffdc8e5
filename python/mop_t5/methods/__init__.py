"""The registry of methods: the only place that knows their names.

A method is one file of its name in this folder, or `method.py` in a folder of its name. The file has a class decorated
by `register`. The registry finds the file by its place. `mop_t5.method_names()` returns the names.
"""

from __future__ import annotations

import pkgutil
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # importing the base of methods imports torch
    from mop_t5.attachment.method import Method, MethodConfig

    MethodT = TypeVar("MethodT", bound=type[Method])

_METHODS: dict[str, type[Method]] = {}


def register(method: MethodT) -> MethodT:
    """Make a Method subclass known under its `name`; a class decorator.

    Raises:
        ValueError: Another class has this name.
    """
    known = _METHODS.get(method.name)
    if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"method name {method.name!r} is taken by {known.__module__}.{known.__qualname__}.")
    _METHODS[method.name] = method
    return method


def method_names() -> tuple[str, ...]:
    """Return the names of all methods that can be attached, in alphabetical order."""
    _discover()
    return tuple(sorted(name for name, method in _METHODS.items() if method.attachable))


def get(name: str) -> type[Method]:
    """Return the Method subclass of this name.

    Raises:
        TypeError: `name` is not a string.
        ValueError: No method has this name.
    """
    if not isinstance(name, str):
        raise TypeError(f"method must be a name or a config object; got {type(name).__name__}.")
    if name not in _METHODS and name in _files():
        import_module(_files()[name])  # importing the others can be slow: some import the kernels
    if name not in _METHODS:
        _discover()
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(method_names())}.")
    return _METHODS[name]


def of_config(config: MethodConfig) -> type[Method]:
    """Return the Method subclass that a config object belongs to.

    Raises:
        TypeError: `config` is not the config of a registered method.
    """
    _discover()
    if found := [method for method in _METHODS.values() if type(config) is method.Config]:
        return found[0]
    raise TypeError(
        f"method must be a name ({', '.join(method_names())}) or a config object of one; got {type(config).__name__}."
    )


@cache
def _discover() -> None:
    for module in _files().values():
        import_module(module)


class _Registry(ModuleType):  # so that mop_t5.methods() returns the names
    def __call__(self) -> tuple[str, ...]:
        return method_names()


sys.modules[__name__].__class__ = _Registry


@cache
def _files() -> dict[str, str]:
    """Return method name -> module, for every file and folder below this folder."""
    found = [module for module in pkgutil.iter_modules(__path__) if module.name != "parts"]
    return {m.name: f"{__name__}.{m.name}.method" if m.ispkg else f"{__name__}.{m.name}" for m in found}
