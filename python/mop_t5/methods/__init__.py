"""The registry of methods: the only place that knows their names.

A method is one file below this folder, of the method's name (`method.py` in a folder of its name where it has several
files), with a class decorated by `register`. It is found by being there. The package can be called: `mop_t5.methods()`
returns the names, as `mop_t5.method_names()` does.
"""

import importlib
import pkgutil
import sys
from types import ModuleType

_METHODS: dict[str, type] = {}
_discovered = False


def register(method: type) -> type:
    """Class decorator: make a Method subclass known under its `name`."""
    known = _METHODS.get(method.name)
    if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"method name {method.name!r} is taken by {known.__module__}.{known.__qualname__}.")
    _METHODS[method.name] = method
    return method


def method_names() -> tuple[str, ...]:
    """Names of all methods that can be attached, in alphabetical order."""
    _discover()
    return tuple(sorted(name for name, method in _METHODS.items() if method.attachable))


def get(name: str) -> type:
    """The Method subclass of this name."""
    if not isinstance(name, str):
        raise TypeError(f"method must be a name or a config object; got {type(name).__name__}.")
    if name not in _METHODS and name in _files():
        importlib.import_module(_files()[name])  # the others may import much: the kernels, for one
    if name not in _METHODS:
        _discover()
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(method_names())}.")
    return _METHODS[name]


def of_config(config) -> type:
    """The Method subclass that a config object belongs to."""
    _discover()
    for method in _METHODS.values():
        if type(config) is method.Config:
            return method
    raise TypeError(
        f"method must be a name ({', '.join(method_names())}) or a config object of one; got {type(config).__name__}."
    )


def _discover() -> None:
    global _discovered
    if not _discovered:
        for module in _files().values():
            importlib.import_module(module)
        _discovered = True


class _Registry(ModuleType):
    def __call__(self) -> tuple[str, ...]:
        return method_names()


sys.modules[__name__].__class__ = _Registry


def _files() -> dict[str, str]:
    """Return method name -> module, for every file and folder below this folder."""
    found = [module for module in pkgutil.iter_modules(__path__) if module.name != "parts"]
    return {m.name: f"{__name__}.{m.name}.method" if m.ispkg else f"{__name__}.{m.name}" for m in found}
