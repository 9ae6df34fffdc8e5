"""Containers of modules of one class, for type checkers: torch's containers are typed as Module."""

from collections.abc import Callable, ItemsView, Iterator, ValuesView
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ModuleDictOf(nn.ModuleDict, Generic[ModuleT]):
    """An nn.ModuleDict whose modules are of one class."""

    if TYPE_CHECKING:
        items: Callable[[], ItemsView[str, ModuleT]]
        values: Callable[[], ValuesView[ModuleT]]

        def __getitem__(self, key: str) -> ModuleT: ...


class ModuleListOf(nn.ModuleList, Generic[ModuleT]):
    """An nn.ModuleList whose modules are of one class."""

    if TYPE_CHECKING:

        def __getitem__(self, index: int) -> ModuleT: ...  # type: ignore[override]  # no slices
        def __iter__(self) -> Iterator[ModuleT]: ...
