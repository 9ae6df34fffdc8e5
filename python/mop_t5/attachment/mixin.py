"""Subclasses made at run time: a mixin before the class of one transformers object, which takes it as its class."""

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


def _new(mixin: type[RuntimeMixin], plain: type) -> Any:
    return object.__new__(combined(mixin, plain))
