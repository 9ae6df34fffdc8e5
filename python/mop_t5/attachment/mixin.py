"""Subclasses made at run time: a mixin before the class of one transformers object, which takes it as its class."""

import functools
from types import MethodType
from typing import Any, ClassVar

_MADE: dict[tuple[type, type], type] = {}


class RuntimeMixin:
    """Base of the mixins. `combined` makes the subclass, and pickle makes it again."""

    _made_of: ClassVar[tuple[type["RuntimeMixin"], type]]  # mixin and plain class; further subclasses inherit it

    @classmethod
    def namespace_of(cls, plain: Any) -> dict[str, Any]:
        """Return further attributes of the subclass of `plain`."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _new, self._made_of, self.__getstate__()


def combined(mixin: type[RuntimeMixin], plain: type) -> type:
    """Return the subclass (mixin, plain), made once.

    It keeps the name and the module of `plain`: transformers reads the source file of the module to decide which
    features the class supports.
    """
    if (mixin, plain) not in _MADE:
        namespace = {"_made_of": (mixin, plain), "__module__": plain.__module__, "__doc__": plain.__doc__}
        _MADE[mixin, plain] = type(plain.__name__, (mixin, plain), namespace | mixin.namespace_of(plain))
    return _MADE[mixin, plain]


def plain_class(instance: object) -> type:
    """Return the class that an object has without the mixin."""
    return instance._made_of[1] if isinstance(instance, RuntimeMixin) else type(instance)


def change_class(instance: Any, changed: type) -> None:
    """Give an object another class.

    accelerate runs a module with a device_map by a forward on the instance, which calls the forward of the class. It
    keeps the latter as `_old_forward`.
    """
    instance.__class__ = changed
    if is_placed(instance):
        instance._old_forward = MethodType(changed.forward, instance)  # type: ignore[attr-defined]
        functools.update_wrapper(instance.forward, instance._old_forward)


def is_placed(instance: Any) -> bool:
    """Return whether a forward on the instance is accelerate's, which only moves data (device_map, offloading)."""
    own = vars(instance)
    if "_hf_hook" not in own or not isinstance(own.get("_old_forward"), MethodType):
        return False
    inside = getattr(own.get("forward"), "__wrapped__", None)
    return isinstance(inside, MethodType) and inside == own["_old_forward"]


def _new(mixin: type[RuntimeMixin], plain: type) -> Any:
    return object.__new__(combined(mixin, plain))
