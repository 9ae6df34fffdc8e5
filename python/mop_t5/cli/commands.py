"""The commands of `mop-t5`: the library's own (commands.json), and the commands that other packages add.

A package adds commands by an entry point of the group `mop_t5.commands`, which names the result of `read_commands`.
"""

import functools
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

GROUP = "mop_t5.commands"


class Command(NamedTuple):
    """A command, or a name with commands under it.

    Attributes:
        help: Lines of the help: flags -> their purpose. The purpose may be empty.
        function: "package.module.function". It is imported when the command is called. Its parameters are the flags
            and the keys of a configuration file, its docstring is the help. A parameter that is a dataclass stands for
            all the fields of that class. None for a name with commands under it.
        commands: The commands under the name.
        purpose: The first line of the help of a name with commands under it.
    """

    help: Mapping[str, str] = {}
    function: str | None = None
    commands: Mapping[str, "Command"] = {}
    purpose: str = ""


def read_commands(path: Path) -> dict[str, Command]:
    """Return the commands that a JSON file describes: name -> the fields of `Command`."""
    return _commands(json.loads(path.read_text(encoding="utf-8")))


def _commands(content: Mapping[str, Any]) -> dict[str, Command]:
    made = {name: Command(**fields) for name, fields in content.items()}
    return {name: command._replace(commands=_commands(command.commands)) for name, command in made.items()}


@functools.cache
def all_commands() -> dict[str, Command]:
    """Return the commands of the library, then the commands of other packages, by name.

    A package whose commands cannot be imported is left out with a warning.
    """
    found = read_commands(Path(__file__).with_name("commands.json"))
    points = entry_points(group=GROUP)
    for point in points:
        try:
            found |= point.load()
        except Exception as error:  # whatever the import of another package raises
            warnings.warn(f"the commands of {point.value} are left out: {error}.", stacklevel=2)
    if not points:
        cure = "Install the package again, for example by pip install -e ."
        warnings.warn(f"the installation names no further commands, such as params and table. {cure}", stacklevel=2)
    return found
