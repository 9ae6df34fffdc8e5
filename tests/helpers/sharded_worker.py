"""What tests/t5/test_sharded_training.py runs in two processes, which share the backbone, and in one.

Every process does the same and leaves what it has seen in FOLDER/rank-R.pt.
"""

import contextlib
import io
import os
import shutil
import signal
import sys
from pathlib import Path

import data_parallel_worker as small
import mop_t5
import torch
from mop_t5.evaluation import Scorer
from mop_t5.operations.run_folder import processes
from mop_t5.training import TrainingConfig, arguments, gathered_weights, train
from mop_t5.training.zero import forget_zero
from torch.distributed.tensor import DTensor
from transformers import T5Config

ROWS = small.CORPUS["train"][:30]
MOE = {"experts": 2, "d_task": 4, "hidden": 4, "noise": 0.0}
MODELS = {  # name: method and fields
    "mop": ("mop", {"prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4}),
    "prefix_tuning": ("prefix_tuning", {"prefix_length": 3, "d_mid": 8}),
    "prompt_tuning": ("prompt_tuning", {"prefix_length": 3}),
    "attempt": ("attempt", {"untrained_sources": 2, "prompt_length": 3, "init": "uniform"}),
    "adapter": ("adapter", {"reduction": 4, "layer_norms": True}),
    "task_moe": ("task_moe", {**MOE, "alternate": True}),
    "fine_tuning": ("fine_tuning", {}),
}
OTHERS = {"fixed routes": ("task_moe", {**MOE, "routes": "random_1"}), "backbone": (None, {})}
ZERO = ("prefix_tuning", "adapter", "fine_tuning")
RESUMED = ("mop", "fine_tuning")  # these are trained longer, with validations, and resumed
DEVICES = {"accumulation": 8, "evaluate_every": 2}  # on 1, 2, 4 or 8 devices
LONGER = {"steps": 4, "accumulation": 4, "save_every": 2}
SETTINGS = {  # name: model, and settings that must be right together with sharding
    "bf16": ("mop", {"bf16": True, "gradient_checkpointing": True}),
    "smoothing": ("fixed routes", {"label_smoothing": 0.1, "loss": "sum", "accumulation": 2}),
    "rmsprop": ("fine_tuning", {"trainer": {"optim": "rmsprop"}}),
}


def new_model(name, dtype=torch.float64):
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(vocab_size=len(small.TOKENIZER), pad_token_id=0, eos_token_id=1, **sizes)
    tied = name == "prompt_tuning"
    model = mop_t5.build_backbone(config, seed=0, dtype=dtype, tie_word_embeddings=tied)
    method, fields = (MODELS | OTHERS)[name]
    torch.manual_seed(0)
    if method is None:
        return model.requires_grad_(True)
    return mop_t5.attach(model, method, scenarios=small.SCENARIOS, **fields)


def trained(folder, name, count, model=None, **changes):
    model = model or new_model(name)
    fields = {"batch_size": 2, "learning_rate": 2e-3, "warmup_steps": 0, "log_every": 1, "max_target": 8, "steps": 2}
    fields |= {"schedule": "constant", "shard": "fsdp" if count > 1 else "no", "accumulation": 2, **changes}
    resume = fields.pop("resume", False)
    fields["accumulation"] //= count
    result = train(
        model,
        small.TOKENIZER,
        ROWS,
        TrainingConfig(**fields),
        output=folder / name,
        valid=small.CORPUS["valid"][:3],
        scorer=Scorer(small.rouge),
        resume=resume,
        progress=False,
    )
    return {"history": result.history, "weights": trained_weights(model)}, model


def resumed(folder, name, count, **changes):
    return trained(folder, name, count, resume=True, **LONGER | {"steps": 5, **changes})[0]


def trained_weights(model):
    """Return the trained weights by name. Only the first process has them."""
    names = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return {name: weight.detach().clone() for name, weight in gathered_weights(model).items() if name in names}


def of_a_model(folder, name, count, rank):
    """Train, and use the model afterwards."""
    found, model = trained(folder, name, count, **(LONGER | {"evaluate_every": 2} if name in RESUMED else {}))
    batch = {"input_ids": torch.tensor([[5, 6, 7, 1]] * 2), "scenario_ids": [0, 3]}
    with torch.no_grad():
        found["logits"] = model(**batch, labels=torch.tensor([[5, 1]] * 2)).logits
    if rank == 1 and name != "fine_tuning":
        mop_t5.save(model, folder / f"saved {name}")  # in one process, and the others do not wait for it
    # one process ends its texts earlier than the other
    stop = {"eos_token_id": None} if rank else {}
    found["ids"] = model.generate(**batch, max_new_tokens=4 + rank, max_length=None, **stop)[:, :5]
    shards = [p for p in model.parameters() if isinstance(p, DTensor)]
    found["values"] = sum(p.numel() for p in model.parameters())
    found["own values"] = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
    if count > 1:
        found["refused"] = [refused(lambda call=call: call(model)) for call in (mop_t5.detach, train_again, attach)]
        found["unsaved"] = refused(lambda: mop_t5.save(model, folder / "nowhere")) if name == "fine_tuning" else None
        assert shards
    return found


def attach(model):
    mop_t5.attach(model, "bitfit")


def train_again(model):
    train(model, small.TOKENIZER, small.CORPUS["train"], TrainingConfig(steps=1), output="nowhere")


def refused(call):
    try:
        call()
    except (TypeError, ValueError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def nan(folder, name, dtype=torch.float64, **changes):
    """One process has a NaN loss at step 3. All must stop there."""
    model, calls = new_model(name, dtype), []

    def poison(module, args, output):
        calls.append(1)
        if len(calls) == 2 * 2 + 1 and processes().process_index == 1:
            output.loss = output.loss * float("nan")

    model.register_forward_hook(poison)
    return refused(lambda: trained(folder / "nan", name, 2, model=model, **LONGER, **changes))


def command(folder):
    """Train the whole backbone by `mop-t5 train`, and resume it."""
    from mop_t5.cli.main import main

    printed, where = io.StringIO(), ["--corpus", folder / "corpus", "--backbone", folder / "backbone"]
    arguments = [*where, "--output", folder / "command", "--steps", 2, "--batch_size", 2, "--max_target", 8]
    arguments += ["--shard", "fsdp", "--save_every", 1, "--log_every", 1]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        codes = [main(["train", *map(str, arguments), *more]) for more in ([], ["--resume", "--steps", "3"])]
    return {"codes": codes, "printed": printed.getvalue()}


def run(folder: Path, one: Path) -> None:
    """Train all models, and continue two trainings of one process, whose folder is `one`."""
    torch.set_num_threads(1)
    team = processes()
    count, rank = team.num_processes, team.process_index
    found = {name: of_a_model(folder, name, count, rank) for name in MODELS}
    for name, (of, changes) in SETTINGS.items():
        dtype = torch.float32 if "bf16" in changes else torch.float64
        found[name] = trained(folder / name, of, count, model=new_model(of, dtype), **changes)[0]
    for name in RESUMED:
        if rank == 0:
            shutil.copytree(one / name, folder / "resumed" / name)
        team.wait_for_everyone()
        found[f"{name}, resumed"] = resumed(folder / "resumed", name, count)
    if count > 1:
        found["nan"] = nan(folder, "fine_tuning")
        for name in ("fine_tuning", "backbone"):
            optimizer = {"trainer": {"optim": "adafactor"}}
            found["adafactor", name] = refused(lambda: trained(folder / "refused", name, 2, **optimizer))  # noqa: B023
        found["command"] = command(folder)
    torch.save(found, folder / f"rank-{rank}.pt")
    team.wait_for_everyone()
    team.destroy_process_group()


def of_zero(folder, name, stage, count):
    """Train and resume in float32. Return what each has seen."""
    found = []
    for changes in ({}, {"resume": True, "steps": 5}):
        model = new_model(name, torch.float32)
        fields = {**LONGER, "evaluate_every": 2, "shard": stage, **changes}
        result, model = trained(folder / stage, name, count, model=model, **fields)
        ids = {"input_ids": torch.tensor([[5, 6, 7, 1]] * 2), "scenario_ids": [0, 3]}
        found.append(result | {"ids": model.generate(**ids, max_new_tokens=4, max_length=None)})
        if stage == "zero3":
            forget_zero()
    return found


def run_zero(folder: Path) -> None:
    """Train by both stages of ZeRO, and try what they refuse."""
    torch.set_num_threads(1)
    settings = arguments.zero_settings

    def sharding_small_weights_too(config):
        made = settings(config)
        if config.shard == "zero3":  # otherwise weights of less than 100,000 values stay whole
            made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    arguments.zero_settings = sharding_small_weights_too
    rank = processes().process_index
    found = {(name, stage): of_zero(folder, name, stage, 2) for name in ZERO for stage in ("zero2", "zero3")}
    for stage in ("zero2", "zero3"):
        found["nan", stage] = nan(folder / stage, "prefix_tuning", torch.float32, shard=stage)
        forget_zero()
    for name, of, dtype in (
        ("mop", "mop", torch.float32),
        ("alternate", "task_moe", torch.float32),
        ("float64", "prefix_tuning", torch.float64),
    ):
        model = new_model(of, dtype)
        found[name] = refused(lambda: trained(folder / "refused", of, 2, model=model, shard="zero3"))  # noqa: B023
    _, model = trained(folder / "last", "prefix_tuning", 2, new_model("prefix_tuning", torch.float32), shard="zero2")
    found["attach"] = refused(lambda: mop_t5.detach(model))
    torch.save(found, folder / f"rank-{rank}.pt")
    processes().wait_for_everyone()


def killed(folder: Path) -> None:
    """Train by the command. The first process is killed in step 3."""
    from mop_t5.cli.main import main

    if os.environ["RANK"] == "0":
        steps = iter(range(100))
        step = torch.optim.AdamW.step

        def dying(self, *arguments, **keywords):
            if next(steps) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *arguments, **keywords)

        torch.optim.AdamW.step = dying
    said = io.StringIO()
    arguments = ["--corpus", folder / "corpus", "--backbone", folder / "backbone", "--output", folder / "killed"]
    arguments += ["--steps", 4, "--batch_size", 2, "--max_target", 8, "--shard", "fsdp", "--save_every", 1]
    with contextlib.redirect_stderr(said):
        code = main(["train", *map(str, arguments), "--method", "prefix_tuning"])
    (folder / "killed.txt").write_text(f"{code}\n{said.getvalue()}")


def on_devices(folder: Path) -> None:
    """Train with a shared backbone in the processes of torchrun, one per device."""
    team = processes()
    folder = folder / str(team.num_processes)
    found = {name: trained(folder, name, team.num_processes, shard="fsdp", **DEVICES)[0] for name in RESUMED}
    if team.is_main_process:
        torch.save(found, folder / "found.pt")
    team.wait_for_everyone()
    team.destroy_process_group()


if __name__ == "__main__":
    on_devices(Path(sys.argv[1]))
