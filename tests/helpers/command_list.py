"""The commands of `mop-t5`, for tests that try each of them."""

from mop_t5.cli.commands import all_commands


def functions(commands=None, *path):
    """Return the words that call each command, and the place of its function."""
    for name, command in (all_commands() if commands is None else commands).items():
        if command.function is None:
            yield from functions(command.commands, *path, name)
        else:
            yield (*path, name), command.function
