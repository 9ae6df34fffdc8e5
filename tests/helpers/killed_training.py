"""Run by test_training_checkpoints.py: training in processes that are killed and resumed. Writes FOLDER/report.json.

Every run is a process of its own, forked from this one, which has the imports and the model but trains nothing.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import test_training_checkpoints as setting
import torch
from killed import in_a_process, kill_now
from mop_t5.training import checkpoints as checkpoints_module
from mop_t5.training import trainer as trainer_module

STEPS = 9


def on_call(owner, name, condition, after=False):
    """Kill this process when owner.name is called with arguments that condition holds for."""
    real = getattr(owner, name)

    def watched(*arguments, **keywords):
        hit = condition(*arguments)
        if hit and not after:
            kill_now()
        result = real(*arguments, **keywords)
        if hit:
            kill_now()
        return result

    setattr(owner, name, watched)


def nth(count):
    calls = iter(range(1, 1000))
    return lambda *_: next(calls) == count


def half_written(content, file, *_, **__):
    if "checkpoint-6" in str(file) and "optimizer" in str(file):
        Path(file).write_bytes(b"PK half of it")
        kill_now()
    return REAL_SAVE(content, file)


REAL_SAVE = torch.save
TARGET = "checkpoint-6"
MOMENTS = {
    "in step 1": lambda: on_call(torch.optim.AdamW, "step", nth(1)),
    "in step 5": lambda: on_call(torch.optim.AdamW, "step", nth(5)),
    "in the backward of step 8": lambda: on_call(torch.Tensor, "backward", nth(8)),
    "while the weights of step 6 are written": lambda: on_call(
        os, "replace", lambda a, b: TARGET in str(b) and str(b).endswith("model.safetensors")
    ),
    "while the optimizer of step 6 is written": lambda: setattr(torch, "save", half_written),
    "before the random state of step 6": lambda: on_call(
        torch, "save", lambda content, file, *_: TARGET in str(file) and "rng_state" in str(file)
    ),
    "before the list of files of step 6": lambda: on_call(checkpoints_module, "write_durably", nth(2)),
    "before the checkpoint of step 6 takes its name": lambda: on_call(
        os, "replace", lambda a, b: str(b).endswith(TARGET)
    ),
    "after the checkpoint of step 6 took its name": lambda: on_call(
        os, "replace", lambda a, b: str(b).endswith(TARGET), after=True
    ),
    "while checkpoint 3 is removed": lambda: on_call(
        os, "replace", lambda a, b: str(a).endswith("checkpoint-3") and str(b).endswith(".removing"), after=True
    ),
}


def train(folder, tokenizer, arm=None, resume=False, kill_after=None):
    """Train to the end or to the kill. Returns the signal that ended the process, 0 for none, and its seconds."""

    def training():
        if arm is not None:
            arm()
        if kill_after is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, kill_now)
            signal.setitimer(signal.ITIMER_REAL, kill_after)
        model = setting.new_model(tokenizer)
        result = setting.run(model, tokenizer, folder, resume, steps=STEPS, save_every=3, log_every=1)
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.mop.parameters()))
        report = {"history": [p for p in result.history if "loss" in p], "weights": weights.hexdigest()}
        (folder / "outcome.json").write_text(json.dumps(report))
        return 0

    started = time.monotonic()
    code = in_a_process(training)
    if code > 0:
        raise SystemExit(f"training in {folder} failed")
    return -code, time.monotonic() - started


def outcome_of(folder):
    return json.loads((folder / "outcome.json").read_text())


def main(root):
    torch.set_num_threads(1)
    rows = setting.CORPUS["general"]
    tokenizer = setting.train_tokenizer([text for row in rows for text in (row.dialogue, row.summary)], 600)
    _, seconds = train(root / "straight", tokenizer)
    report = {"straight": outcome_of(root / "straight")}
    runs = dict(MOMENTS) | {f"timer at {share} of the run": share for share in (0.45, 0.7, 0.9)}
    for number, (moment, how) in enumerate(runs.items()):
        folder = root / str(number)
        folder.mkdir()
        timed = isinstance(how, float)
        killed_by, _ = train(folder, tokenizer, None if timed else how, kill_after=how * seconds if timed else None)
        whole = checkpoints_module.checkpoints(folder / trainer_module.CHECKPOINTS)
        if killed_by:
            train(folder, tokenizer, resume=bool(whole))
        report[moment] = outcome_of(folder) | {
            "signal": killed_by,
            "resumed_from": whole[-1].name if whole and killed_by else None,
        }
    (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
