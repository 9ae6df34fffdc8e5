"""Run by test_experiments.py: `mop-t5 table 2` in processes that are killed and started again.

Arguments: a folder with a corpus and a backbone, and the flags of the table. Every attempt is a process forked from
this one, which has the imports. Writes FOLDER/report.json: how each attempt ended, and what it did with each run.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from killed import at_call, in_a_process
from mop_lab.suites import suite as suite_module
from mop_t5.cli.main import main
from mop_t5.training import training_run

# Each attempt goes on where the one before was killed, in a suite of four runs of 6 steps with a checkpoint every two.
MOMENTS = {
    "in step 5 of the second run": lambda: at_call(torch.optim.AdamW, "step", 6 + 5),
    "in step 1 of the third run": lambda: at_call(torch.optim.AdamW, "step", 2 + 1),
    "before the evaluation of the third run": lambda: at_call(suite_module.RunEvaluation, "run", 1),
    "before the fourth run is saved": lambda: at_call(training_run, "save_run", 1),
    "in the floors, after all runs": lambda: at_call(suite_module, "write_scores", 1),
}


def attempt(arguments, log, arm=None):
    """Run the command in a process of its own; the signal that ended it, 0 for none."""

    def command():
        if arm is not None:
            arm()
        with open(log, "w") as file, redirect_stdout(file):
            return main(arguments)

    code = in_a_process(command)
    if code > 0:
        raise SystemExit(f"{arguments} failed")
    return -code


def run(folder, flags):
    torch.set_num_threads(1)
    attempt(["table", "2", *flags, "--output", str(folder / "straight")], folder / "straight.log")
    report = {}
    for moment, arm in {**MOMENTS, "never": None}.items():
        log = folder / f"{moment}.log"
        ended_by = attempt(["table", "2", *flags, "--output", str(folder / "killed")], log, arm)
        states = [line.split(": ")[1] for line in log.read_text().splitlines() if line.startswith("[")]
        report[moment] = {"signal": ended_by, "states": states}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
