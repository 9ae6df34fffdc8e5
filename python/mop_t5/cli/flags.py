"""Make flags from functions. The parameters are the flags, and the docstring is the help.

A parameter that is a dataclass stands for the fields of that class. A parameter of the type `Words` takes one or more
words without a flag. A parameter of the type `Repeated` is a flag that takes one text and may be given several times.
"""

import argparse
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader

from mop_t5.cli import Repeated, Words
from mop_t5.cli.commands import Command
from mop_t5.methods import get, method_names

# flags of single entries of a mapping: --options.rank 4, --trainer.optim sgd
_MAPPINGS = ("options", "trainer")
# jsonargparse reads a text as YAML unless its type is `str`: "#x", "~" and "null" become None. It reads the texts in a
# dict[str, Any] twice. It does not change a `str`, and accepts None for it as a default or from a file.
_TYPES: dict[Any, Any] = {
    str | None: str,
    dict[str, Any]: dict,
    dict[str, Any] | None: dict | None,
    dict[str, dict[str, Any]]: dict[str, dict],
    Repeated: list[str],
}


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A formatter that keeps the lines of the examples in a description."""


_parser = partial(ArgumentParser, allow_abbrev=False, formatter_class=_Help)  # --seed does not abbreviate --seeds


def function_of(where: str) -> Callable[..., Any]:
    """Return the function of a command. where: "package.module.function"."""
    module, _, function = where.rpartition(".")
    return getattr(import_module(module), function)


def parse(
    arguments: Sequence[str], program: Command, name: str, notes: str = ""
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function that the arguments call, and its keywords.

    Like argparse, exit with 0 for --help and with 2 for a wrong flag. Only the called function is imported, so that the
    help is fast.

    Args:
        arguments: The words after the program's name.
        program: All commands, under `commands`.
        name: The name of the program.
        notes: The last lines of the program's help.
    """
    parser = _parser(prog=name, description="\n\n".join(filter(None, [program.purpose, _lines(name, program), notes])))
    called = _add(parser, program, name, arguments)
    others, options = _options(arguments)
    if called is not None:
        _check_config_files(called, others)
        others = _joined(others, {one.dest for one in called._actions if getattr(one, "annotation", None) == Repeated})
    namespace, command = parser.parse_args(others), program
    while command.function is None:
        command, namespace = command.commands[namespace.command], namespace[namespace.command]
    function, given = function_of(command.function), namespace.as_dict()
    given.pop("config", None)
    for path, value in options:
        if path[0] not in given:
            parser.error(f"unrecognized arguments: --{'.'.join(path)}")
        _put(given, path, value)
    return function, _gather(function, given)


def _lines(words: str, command: Command) -> str:
    """Return the lines of help of the commands under a name, with the purposes in one column if they fit."""
    lines = [
        (f"{words} {name} {flags}".rstrip(), p) for name, c in command.commands.items() for flags, p in c.help.items()
    ]
    width = max(len(flags) for flags, purpose in lines if purpose and len(flags) < 60)
    return "\n".join(f"  {flags:{width}}  {purpose}".rstrip() for flags, purpose in lines)


def _add(parser: ArgumentParser, above: Command, words: str, arguments: Sequence[str]) -> ArgumentParser | None:
    """Add the commands under a name to its parser. Return the parser of the called command, None if none is called."""
    found = None
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, command in above.commands.items():
        called = name == next(iter(arguments), None)
        if not called:  # its flags are not needed
            subcommands.add_subcommand(name, _parser())
        elif command.function is not None:
            found = _command_parser(function_of(command.function))
            subcommands.add_subcommand(name, found)
        else:
            one = _parser(description=f"{command.purpose}\n\n{_lines(f'{words} {name}', command)}")
            subcommands.add_subcommand(name, one)  # jsonargparse needs the outer parser first
            found = _add(one, command, f"{words} {name}", arguments[1:])
    # the description lists the commands
    parser._action_groups = [group for group in parser._action_groups if group is not parser._subparsers]
    return found


def _check_config_files(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Check the names in the files of --config. Exit, as for a wrong flag, for an unknown name.

    jsonargparse silently takes the second of two equal keys, and has no message for an unknown key of a command under a
    name.

    Raises:
        ValueError: A file is no YAML or JSON, or has a setting twice.
    """
    from mop_t5.data.tasks import read_yaml  # imported here, so that the help needs no torch

    known = [action.dest for action in parser._actions if action.dest not in ("help", "config", "print_config")]
    _, files = _taken(arguments, lambda name: name == "config", may_be_flag=True)
    for _, path in files:
        content = read_yaml(path)
        names = [name.partition(".")[0] for name in content]  # `options.rank` is a part of `options`
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"{path}: no such setting: {', '.join(unknown)}. Known settings: {', '.join(known)}.")
        if twice := sorted({name for name in names if names.count(name) > 1 and name in content}):
            raise ValueError(f"{path}: {', '.join(twice)} is given as a whole and in parts. Write it once.")


def _command_parser(command: Callable[..., Any]) -> ArgumentParser:
    description = _documentation(command).split("\nArgs:")[0].rstrip()
    parser = _parser(description=description)
    parser.add_argument("--config", action="config", help="YAML or JSON file with any of the settings below.")
    dataclasses, positionals = dataclasses_of(command), positionals_of(command)
    for name, text in positionals.items():
        parser.add_argument(name, nargs="+", type=str, help=text)
    parser.add_function_arguments(command, as_group=False, skip={*dataclasses, *positionals})
    for dataclass, left_out in dataclasses.values():
        parser.add_class_arguments(dataclass, as_group=False, skip=set(left_out))
    if any(action.dest == "options" for action in parser._actions):
        parser.epilog = "\n\n".join(_documentation(get(name).Config) for name in method_names())
    every = [field for dataclass, _ in dataclasses.values() for field in fields(dataclass)]
    # the types of fields with a check in Annotated, which check_types reads
    checked = {field.name: get_args(field.type)[0] for field in every if get_origin(field.type) is Annotated}
    for action in parser._actions:
        if (hint := checked.get(action.dest, getattr(action, "_typehint", None))) is not None:
            vars(action).update(annotation=hint, _typehint=_TYPES.get(hint, hint))
        if isinstance(action.default, bool):
            action.nargs, action.const = "?", True  # `--overwrite` alone means `--overwrite true`
    return parser


def _taken(
    arguments: Sequence[str], wanted: Callable[[str], bool], may_be_flag: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the arguments without some flags and their texts, and these as (name of the flag, text).

    A flag without a text stays among the arguments, and the parser says so.

    Args:
        arguments: The arguments.
        wanted: Returns whether a flag is taken, by its name.
        may_be_flag: The text of a flag may begin with "--".
    """
    others: list[str] = []
    taken: list[tuple[str, str]] = []
    places = iter(range(len(arguments)))
    for place in places:
        flag, joined, text = arguments[place].partition("=")
        name, after = flag.removeprefix("--"), arguments[place + 1 : place + 2]
        apart = not joined and bool(after) and (may_be_flag or not after[0].startswith("--"))
        if flag.startswith("--") and wanted(name) and (joined or apart):
            taken.append((name, arguments[next(places)] if apart else text))
        else:
            others.append(arguments[place])
    return others, taken


def _joined(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the arguments with all texts of a flag that may be repeated in one list."""
    others, taken = _taken(arguments, names.__contains__, may_be_flag=True)
    texts: dict[str, list[str]] = {}
    for name, text in taken:
        texts.setdefault(name, []).append(text)
    # JSON would write a character beyond U+FFFF as two halves, which YAML does not join
    how: dict[str, Any] = {"default_style": '"', "default_flow_style": True, "width": 2**20}
    return others + [f"--{name}={yaml.safe_dump(some, **how).strip()}" for name, some in texts.items()]


def _options(arguments: Sequence[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    """Return the arguments without the single entries of mappings, and these entries as (path of names, value).

    jsonargparse would read each entry as YAML, but only the methods and Trainer know which entries are texts.
    """
    mappings = tuple(f"{name}." for name in _MAPPINGS)
    others, taken = _taken(arguments, lambda name: name.startswith(mappings), may_be_flag=False)
    return others, [(path := name.split("."), _entry(path, text)) for name, text in taken]


def _entry(path: Sequence[str], value: str) -> Any:
    """Return the value of an entry. It is read as YAML, unless the fields of this name are texts.

    A text that may also be None or a mapping of texts can be given as `null` or as `{name: text}`.
    """
    kinds = _kinds(path)
    try:
        read = get_loader("yaml")(value)
    except yaml.YAMLError:
        read = value
    others = {kind for kind in kinds - {str, NoneType} if get_origin(kind) is not dict}
    if str not in kinds or others or (value == "null" and NoneType in kinds):
        return read
    texts = isinstance(read, dict) and all(isinstance(text, str) for pair in read.items() for text in pair)
    return read if texts and value.startswith("{") and kinds - {str, NoneType} else value


def _kinds(path: Sequence[str]) -> set[Any]:
    """Return the types that a field of transformers' Trainer, or the fields of the methods with a name, may have."""
    if path[0] == "trainer":
        from mop_t5.training.trainer_settings import trainer_types  # imported here, so that the help needs no torch

        hints = [trainer_types().get(path[1])]
    else:
        hints = [get_type_hints(get(method).Config).get(path[-1]) for method in method_names()]
    return {kind for hint in hints for kind in (get_args(hint) if NoneType in get_args(hint) else [hint])} - {None}


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value in nested mappings, at a path of names. Raise ValueError if a name before the last has a value."""
    for number, name in enumerate(path[:-1], 1):
        inner = values.get(name)
        if inner is not None and not isinstance(inner, dict):
            whole, part = ".".join(path[:number]), ".".join(path[number:])
            raise ValueError(
                f"{whole} is {inner!r}, so it has no part {part!r}. Give --{whole} or its parts, not both."
            )
        values[name] = values = dict(inner or {})
    values[path[-1]] = value


def _documentation(item: object) -> str:
    return inspect.getdoc(item) or ""


def dataclasses_of(command: Callable[..., Any]) -> dict[str, tuple[type[Any], tuple[str, ...]]]:
    """Return the parameters of a command whose fields are flags: parameter -> (dataclass, fields without a flag).

    Annotated names the fields without a flag.
    """
    hints = get_type_hints(command, include_extras=True)
    found: dict[str, tuple[Any, tuple[str, ...]]] = {
        name: (getattr(h, "__origin__", h), getattr(h, "__metadata__", ())) for name, h in hints.items()
    }
    return {name: pair for name, pair in found.items() if is_dataclass(pair[0])}


def positionals_of(command: Callable[..., Any]) -> dict[str, str]:
    """Return the parameters of a command that take words without a flag, and their help."""
    hints = get_type_hints(command, include_extras=True)
    parameters = docstring_parser.parse(_documentation(command)).params
    return {one.arg_name: one.description or "" for one in parameters if hints.get(one.arg_name) == Words}


def _gather(command: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a command, with flags that are fields of a dataclass put into that dataclass."""
    made: dict[str, Any] = {}
    for name, (dataclass, left_out) in dataclasses_of(command).items():
        flags = [field.name for field in fields(dataclass) if field.name not in left_out]
        made[name] = dataclass(**{flag: given.pop(flag) for flag in flags})
    return made | given
