"""Run the command `mop-t5`: train, evaluate, generate and others.

The flags of a command are made from its function (commands.py, flags.py). An error is one sentence on stderr, with exit
code 1 (2 for a wrong flag, 130 for Ctrl-C). With MOP_T5_DEBUG=1 the traceback is shown.
"""

import errno
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from mop_t5.cli.commands import Command, all_commands

_PURPOSE = "Tune a frozen T5 on dialogues of several scenarios, and measure the result."
_NOTES = """A corpus is a folder with train, valid and test `.jsonl` or `.jsonl.gz`, one object per line:
  {"scenario": "taxi", "dialogue": "...", "summary": "..."}
Flags can stand in a YAML or JSON file under the same names: mop-t5 train --config train.yaml
`mop-t5 COMMAND --help` explains the flags of a command."""
_PROGRAM = "mop-t5"
_STOPPED = 130  # the exit code of a shell after Ctrl-C
_CURES = {
    **{errno.ENOENT: "Check the path", errno.EISDIR: "Name a file"},
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EROFS), "Choose another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Choose another folder, or get the right to use this one"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room there or choose another folder"),
    errno.EFBIG: "Choose another folder, or lift the limit on the size of files",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 1 for an error, 130 for Ctrl-C, else the command's."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # raises BrokenPipeError here, and not after the last line of Python
    except KeyboardInterrupt as stop:
        _say(arguments, str(stop) or "interrupted. All written files are complete; the same command starts again.")
        return _STOPPED
    except BrokenPipeError:  # as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("MOP_T5_DEBUG"):
            raise
        lost = isinstance(error, ConnectionError)  # the first process may be the one that ended
        _say(arguments, _sentence(error), everywhere=lost)
        return 1


def _run(arguments: list[str]) -> int:
    from mop_t5.cli.flags import parse  # imported here, so that a missing package is one sentence, too

    command, given = parse(arguments, Command(commands=all_commands(), purpose=_PURPOSE), _PROGRAM, _NOTES)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and command.__name__ != "train":
        raise RuntimeError(f"only train runs in several processes, and this is one of {processes}.")
    return command(**given) or 0


def _say(arguments: Sequence[str], sentence: str, everywhere: bool = False) -> None:
    """Print one line on stderr, in the first of several processes or in each."""
    if everywhere or int(os.environ.get("RANK", 0)) == 0:
        words: list[str] = []
        below: Mapping[str, Command] = all_commands()
        for word in arguments:
            if word not in below:
                break
            words, below = [*words, word], below[word].commands
        print(f"{' '.join([_PROGRAM, *words])}: {' '.join(sentence.split())}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    """Return a sentence on the error and its cure."""
    said = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f'the package {error.name.split(".")[0]} is not installed. Install it: pip install "mop-kernels[t5]"'
    if isinstance(error, OSError) and error.errno and error.strerror == os.strerror(error.errno):  # a message of Python
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}. {_CURES.get(error.errno, 'Try again, or choose another place')}."
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"memory ran out{f' ({said})' if said else ''}. Lower batch_size, max_source or num_beams."
    if isinstance(error, (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError)) and said:
        return said
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__} ({said}) in {Path(last.filename).name}, line {last.lineno}. "
        "Please report it with the traceback that MOP_T5_DEBUG=1 shows."
    )
