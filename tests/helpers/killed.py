"""Commands and trainings in processes that are killed, run out of room or are interrupted, and are started again.

`report_of` runs a worker in a process of its own. The worker forks a process for every attempt, so that no attempt
imports anything anew, and returns a report: how each attempt ended, and what it left.
"""

import gc
import hashlib
import json
import os
import resource
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import jsonargparse  # noqa: F401  imported once, for all attempts
import small_training
import torch
from mop_t5.cli.main import main
from mop_t5.evaluation import serving
from mop_t5.training import CHECKPOINTS, checkpoints, training_run

import mop_kernels  # noqa: F401  imported once, for all attempts


def report_of(forks, worker, folder, *flags):
    arguments = (worker, str(folder), *map(str, flags))
    forks.run(f"from killed import report; report{arguments!r}")
    return json.loads((Path(folder) / "report.json").read_text())


def kill_now(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(*_):
    raise KeyboardInterrupt


def at_call(owner, name, condition, act=kill_now, after=False):
    """Act when owner.name is called for the nth time, or with arguments for which a condition holds."""
    real, calls = getattr(owner, name), iter(range(1, 10_000))

    def watched(*arguments, **keywords):
        number = next(calls)
        hit = condition(*arguments) if callable(condition) else number == condition
        if hit and not after:
            act()
        result = real(*arguments, **keywords)
        if hit:
            act()
        return result

    setattr(owner, name, watched)


def attempt(function, log, arm=None):
    """Call a function in a process of its own, with its output in a log. Return the exit code, or minus the signal."""
    gc.freeze()  # each training collects; what is imported need not be looked at
    child = os.fork()
    if not child:
        code = 1
        try:
            if arm is not None:
                arm()
            with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
                code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def room_for(size, on_more):
    """Limit the size of files. The write that passes it is cut; the next is an error for Python (on_more=SIG_IGN, its
    default), or the process is killed in the middle of a line (SIG_DFL)."""
    signal.signal(signal.SIGXFSZ, on_more)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# The input has 60 lines, the window is 10. Each attempt goes on where the one before ended.
GENERATING = {
    "before the output is made": lambda size: at_call(serving, "FileIO", 1),
    "in the second window": lambda size: at_call(serving, "generate_summaries", 2),
    "in the middle of a line of the third": lambda size: room_for(size * 27 // 60, signal.SIG_DFL),
    "no room for the fourth": lambda size: room_for(size * 37 // 60, signal.SIG_IGN),
    "Ctrl-C in the fifth": lambda size: at_call(serving, "generate_summaries", 2, interrupt),
    "before the fifth is on the disk": lambda size: at_call(os, "fsync", 1),
    "never": lambda size: None,
    "after the end": lambda size: at_call(serving, "generate_summaries", 1),
}


def generate(folder, flags):
    """`mop-t5 generate`, in one go and killed."""
    import mop_t5.cli.generate  # noqa: F401  imported once, for all attempts

    straight, killed, report = folder / "straight.jsonl", folder / "killed.jsonl", {}
    command = ["generate", *flags, "--window", "10"]
    attempt(lambda: main([*command, "--output", str(straight)]), folder / "straight.log")
    size = straight.stat().st_size
    for number, (moment, arm) in enumerate(GENERATING.items()):
        log = folder / f"{number}.log"
        code = attempt(lambda: main([*command, "--output", str(killed), "--resume"]), log, partial(arm, size))
        content = killed.read_bytes() if killed.exists() else b""
        report[moment] = {
            "code": code,
            "lines": content.count(b"\n"),
            "half a line": bool(content) and not content.endswith(b"\n"),
            "said": log.read_text().strip().split("\n")[-1],
        }

    def on_a_full_standard_output():
        os.dup2(os.open("/dev/full", os.O_WRONLY), sys.__stdout__.fileno())
        with redirect_stdout(sys.__stdout__):
            return main(command)

    code = attempt(on_a_full_standard_output, folder / "full.log")
    said = (folder / "full.log").read_text().strip().split("\n")[-1]
    return report | {"no room on standard output": {"code": code, "said": said}}


def table(folder, flags):
    """`mop-t5 table 2`, in one go and killed: four runs of 6 steps, with a checkpoint every two."""
    import rouge_score.rouge_scorer  # noqa: F401  imported once, for all attempts
    from mop_lab.commands import table  # noqa: F401  imported once, for all attempts
    from mop_lab.suites import suite, trial

    moments = {
        "in step 5 of the second run": lambda: at_call(torch.optim.AdamW, "step", 6 + 5),
        "in step 1 of the third run": lambda: at_call(torch.optim.AdamW, "step", 2 + 1),
        "before the evaluation of the third run": lambda: at_call(trial.RunEvaluation, "run", 1),
        "before the fourth run is saved": lambda: at_call(training_run.run_folder, "save_run", 1),
        "in the floors, after all runs": lambda: at_call(suite, "write_scores", 1),
        "never": None,
    }
    straight = attempt(lambda: main(["table", "2", *flags, "--output", str(folder / "straight")]), folder / "log")
    assert straight == 0, (folder / "log").read_text()
    report = {}
    for moment, arm in moments.items():
        log = folder / f"{moment}.log"
        code = attempt(lambda: main(["table", "2", *flags, "--output", str(folder / "killed")]), log, arm)
        states = [line.split(": ")[1] for line in log.read_text().splitlines() if line.startswith("[")]
        report[moment] = {"signal": -code, "states": states}
    return report


TARGET = "checkpoint-6"


def half_written(real, content, file, *_, **__):
    if TARGET in str(file) and "optimizer" in str(file):
        Path(file).write_bytes(b"PK half of it")
        kill_now()
    return real(content, file)


TRAINING = {
    "in step 1": lambda: at_call(torch.optim.AdamW, "step", 1),
    "in step 5": lambda: at_call(torch.optim.AdamW, "step", 5),
    "in the backward of step 8": lambda: at_call(torch.Tensor, "backward", 8),
    "while the weights of step 6 are written": lambda: at_call(
        os, "replace", lambda a, b: TARGET in str(b) and str(b).endswith("model.safetensors")
    ),
    "while the optimizer of step 6 is written": lambda: setattr(torch, "save", partial(half_written, torch.save)),
    "before the random state of step 6": lambda: at_call(
        torch, "save", lambda content, file, *_: TARGET in str(file) and "rng_state" in str(file)
    ),
    "before the list of files of step 6": lambda: at_call(checkpoints, "replace_file", 2),
    "before the checkpoint of step 6 takes its name": lambda: at_call(
        os, "replace", lambda a, b: str(b).endswith(TARGET)
    ),
    "after the checkpoint of step 6 took its name": lambda: at_call(
        os, "replace", lambda a, b: str(b).endswith(TARGET), after=True
    ),
    "while checkpoint 3 is removed": lambda: at_call(
        os, "replace", lambda a, b: str(a).endswith("checkpoint-3") and str(b).endswith(".removing"), after=True
    ),
}


def kill_after(seconds):
    signal.signal(signal.SIGALRM, kill_now)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def training(folder, flags):
    """A training of 9 steps, in one go and killed at each moment, with a checkpoint every three steps."""
    tokenizer, report = small_training.new_tokenizer(), {}

    def train(place, resume=False):
        model = small_training.new_model(tokenizer)
        result = small_training.run(model, tokenizer, place, resume, steps=9, save_every=3, log_every=1)
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.mop.parameters()))
        outcome = {"history": [p for p in result.history if "loss" in p], "weights": weights.hexdigest()}
        (place / "outcome.json").write_text(json.dumps(outcome))
        return 0

    def ended(place, arm=None, resume=False):
        code = attempt(partial(train, place, resume), folder / "log", arm)
        assert code <= 0, (folder / "log").read_text()
        return -code

    started = time.monotonic()
    ended(folder / "straight")
    seconds = time.monotonic() - started
    report["straight"] = json.loads((folder / "straight" / "outcome.json").read_text())
    timers = {f"timer at {share} of the run": partial(kill_after, share * seconds) for share in (0.45, 0.7, 0.9)}
    for number, (moment, arm) in enumerate((TRAINING | timers).items()):
        place = folder / str(number)
        place.mkdir()
        killed_by = ended(place, arm)
        whole = checkpoints.checkpoints(place / CHECKPOINTS)
        if killed_by:
            ended(place, resume=bool(whole))
        resumed_from = whole[-1].name if whole and killed_by else None
        outcome = json.loads((place / "outcome.json").read_text())
        report[moment] = outcome | {"signal": killed_by, "resumed_from": resumed_from}
    return report


def report(worker, place, *flags):
    torch.set_num_threads(1)
    found = {"generate": generate, "table": table, "training": training}[worker](Path(place), flags)
    (Path(place) / "report.json").write_text(json.dumps(found))
