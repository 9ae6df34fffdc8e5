"""Subclasses made at run time: a mixin before the class of a library, which one layer takes as its class."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

_MADE: dict[tuple[type, type], type] = {}

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class Accelerated(_Module):
    """Base of the mixins. `accelerated_class` makes the subclass, and copies and pickles make it again."""

    _made_of: ClassVar[tuple[type["Accelerated"], type[nn.Module]]]  # mixin and plain class

    # names of methods that other code may replace on a layer, where the mixin would pass over them
    replaceable: ClassVar[tuple[str, ...]]
    replaced_by: ClassVar[str] = ""

    @classmethod
    def objection(cls, layer: Any) -> str | None:
        """Return why this mixin cannot compute a layer, or None."""
        replaced = set(cls.replaceable) & layer.__dict__.keys()
        return f"its {min(replaced)} is replaced on the instance{cls.replaced_by}" if replaced else None

    def __reduce_ex__(self, protocol: Any) -> tuple:
        state = super().__reduce_ex__(protocol)[2]
        return _new, self._made_of, state


def accelerated_class(mixin: type[Accelerated], plain: type[nn.Module]) -> type[Accelerated]:
    """Return the subclass (mixin, plain), made once, with the name and the module of `plain`."""
    if (mixin, plain) not in _MADE:
        namespace = {"_made_of": (mixin, plain), "__module__": plain.__module__, "__doc__": plain.__doc__}
        _MADE[mixin, plain] = type(plain.__name__, (mixin, plain), namespace)
    return _MADE[mixin, plain]


def _new(mixin: type[Accelerated], plain: type[nn.Module]) -> Any:
    return object.__new__(accelerated_class(mixin, plain))
