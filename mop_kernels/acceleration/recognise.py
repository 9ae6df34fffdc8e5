"""Recognise layers of other libraries by the names of their classes and by versions. No library is imported."""

import re
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from torch import nn

from .adapters_phm import AdaptersPHM
from .lycoris_lokr import LycorisLokr
from .peft_lokr import PeftLokrLinear
from .runtime_class import Accelerated


class Known(NamedTuple):
    """A class of a library.

    distribution: The package that pip installs.
    versions: The release series that were tested, "major.minor".
    mixin: The class to mix in. None for a class that is never accelerated.
    reason: Why it is never accelerated.
    """

    distribution: str
    versions: tuple[str, ...]
    mixin: type[Accelerated] | None
    reason: str = ""


_CONVOLUTION = "it is a LoKr of a convolution, not of a linear layer"
_PEFT, _LYCORIS, _ADAPTERS = ("peft", ("0.21",)), ("lycoris-lora", ("4.1",)), ("adapters", ("1.3",))

KNOWN: dict[str, Known] = {  # by module and name of the class
    "peft.tuners.lokr.layer.Linear": Known(*_PEFT, PeftLokrLinear),
    "peft.tuners.lokr.layer.Conv1d": Known(*_PEFT, None, _CONVOLUTION),
    "peft.tuners.lokr.layer.Conv2d": Known(*_PEFT, None, _CONVOLUTION),
    "lycoris.modules.lokr.LokrModule": Known(*_LYCORIS, LycorisLokr),
    "adapters.methods.modeling.PHMLayer": Known(*_ADAPTERS, AdaptersPHM),
}


def known_class(plain: type[nn.Module]) -> tuple[Known, type] | None:
    """Return the entry of a class or of its nearest known base, and that base. None for a class without either."""
    for base in plain.__mro__:
        entry = KNOWN.get(f"{base.__module__}.{base.__qualname__}")
        if entry is not None:
            return entry, base
    return None


def untested_version(entry: Known) -> str | None:
    """Return the library with its installed version if it is not among the tested ones, or None."""
    try:
        found = version(entry.distribution)
    except PackageNotFoundError:
        found = "of unknown version"
    series = "|".join(map(re.escape, entry.versions))
    if re.fullmatch(rf"({series})(\.\d+)*(\.post\d+)?", found):
        return None
    return f"{entry.distribution} {found} was not tested (tested: {', '.join(f'{v}.x' for v in entry.versions)})"
