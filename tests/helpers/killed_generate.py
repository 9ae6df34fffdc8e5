"""Run by test_generate_command.py: `mop-t5 generate` in processes that are killed, run out of room or are interrupted,
and started again.

Arguments: the folder for outputs, and the flags of the command. Writes FOLDER/report.json: how each attempt ended, what
it said last, and how much it left.
"""

import json
import os
import resource
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path

import torch
from killed import at_call, in_a_process
from mop_t5.cli.main import main
from mop_t5.evaluation import serving


def room_for(size, on_more):
    """No file of this process may grow beyond size bytes: the write that would is cut there, the next one is an error
    for Python (on_more=SIG_IGN, its default), or kills the process in the middle of a line (SIG_DFL)."""
    signal.signal(signal.SIGXFSZ, on_more)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def interrupt_at(owner, name, count):
    """Ctrl-C at a call."""
    real, calls = getattr(owner, name), iter(range(1, 10_000))

    def watched(*arguments, **keywords):
        if next(calls) == count:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    setattr(owner, name, watched)


# Each attempt goes on where the one before ended. The input has 60 lines, the window is 10.
MOMENTS = {
    "before the output is made": lambda size: at_call(serving, "FileIO", 1),
    "in the second window": lambda size: at_call(serving, "generate_summaries", 2),
    "in the middle of a line of the third": lambda size: room_for(size * 27 // 60, signal.SIG_DFL),
    "no room for the fourth": lambda size: room_for(size * 37 // 60, signal.SIG_IGN),
    "Ctrl-C in the fifth": lambda size: interrupt_at(serving, "generate_summaries", 2),
    "before the fifth is on the disk": lambda size: at_call(os, "fsync", 1),
    "never": lambda size: None,
    "after the end": lambda size: at_call(serving, "generate_summaries", 1),
}


def run(folder, flags):
    torch.set_num_threads(1)

    def attempt(log, *more, arm=lambda size: None, size=0):
        def command():
            arm(size)
            with open(log, "w") as file, redirect_stderr(file):
                return main(["generate", *flags, "--window", "10", *more])

        return in_a_process(command)

    straight, killed, report = folder / "straight.jsonl", folder / "killed.jsonl", {}
    attempt(folder / "straight.log", "--output", str(straight))
    for number, (moment, arm) in enumerate(MOMENTS.items()):
        log = folder / f"{number}.log"
        more = ["--output", str(killed), "--resume"]
        code = attempt(log, *more, arm=arm, size=straight.stat().st_size)
        content = killed.read_bytes() if killed.exists() else b""
        report[moment] = {
            "code": code,
            "lines": content.count(b"\n"),
            "half a line": bool(content) and not content.endswith(b"\n"),
            "said": log.read_text().strip().split("\n")[-1],
        }
    log = folder / "full.log"
    code = attempt(log, arm=lambda size: os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno()))
    report["no room on standard output"] = {"code": code, "said": log.read_text().strip().split("\n")[-1]}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
