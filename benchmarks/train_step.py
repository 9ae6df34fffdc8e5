"""Time whole training steps of a frozen T5-small: of this tree, of another commit beside it, and of PEFT.

    python -m benchmarks.train_step --against COMMIT [--keep]

A step is forward and backward of 8 dialogues of 256 tokens with 64 summary tokens, dropout 0.1, float32. Rows of AdamW
time the optimizer alone. One process per tree answers in turn, in many rounds, so that a disturbance of the machine
disturbs all. The command prints a table of the times and of what autograd saves for backward, and a profile of one step
per tree; --keep writes them to benchmarks/results. Rows of PEFT need peft, in this environment.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from benchmarks.support import two_trees
from benchmarks.support.t5 import saved_megabytes
from benchmarks.support.two_trees import HERE

BATCH, SOURCE, TARGET, VOCABULARY = 8, 256, 64, 32128
GROUP = f"one step of T5-small, {BATCH} x ({SOURCE} -> {TARGET}), forward + backward"
MOP, PADDED = "MOP, default", "MOP, default, 30 % of the source tokens are padding"
DECODER_ONLY = "MOP in the decoder's self-attention only"
CACHED = "MOP in the decoder's self-attention only, encoder outputs and cross keys kept"
PEFT = "PEFT PREFIX_TUNING, 40 rows"
COMPILED, RECOMPUTED = "MOP, default, `compile`", "MOP, default, `gradient_checkpointing`"
FUSED, PLAIN = "AdamW alone, MOP's parameters, `fused`", "AdamW alone, MOP's parameters, `fused: false`"
OF_OLD_TREES = (MOP, PADDED)
# parts of a profile: the first word that an operator's name contains
PARTS = {
    "products of the frozen maps": ("aten::mm", "aten::addmm"),
    "attention": ("prefix_attention", "aten::bmm", "_softmax", "scaled_dot_product"),
    "dropout, norms, activations": ("bernoulli", "dropout", "rms_norm", "relu", "threshold", "rsqrt", "pow"),
    "loss": ("linear_cross_entropy", "log_softmax", "nll"),
}


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """Return the batch of a row."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (BATCH, SOURCE), generator=generator)
    mask = torch.ones(BATCH, SOURCE, dtype=torch.int64)
    if name == PADDED:
        for row, share in enumerate(torch.linspace(0, 0.6, BATCH).tolist()):  # a mean of 30 %
            mask[row, SOURCE - int(share * SOURCE) :] = 0
        ids = ids * mask
    labels = torch.randint(3, VOCABULARY, (BATCH, TARGET), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def backbone() -> Any:
    """Return a T5-small with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(dropout_rate=0.1)  # its other fields are those of T5-small
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


@cache
def step_of(name: str) -> tuple[Any, Callable[[], torch.Tensor], Callable[[], None]]:
    """Return the model of a row, a function that computes its loss, and a function that makes one step."""
    model, loss = call_of(name)
    if name in (FUSED, PLAIN):
        trained = [p for p in model.parameters() if p.requires_grad]
        for p in trained:
            p.grad = torch.full_like(p, 1e-3)
        # without `fused` the optimizer works as Trainer makes it: tensor by tensor on a CPU
        return model, loss, torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.01, fused=name == FUSED).step

    def step() -> None:
        loss().backward()
        model.zero_grad()

    return model, loss, step


def call_of(name: str) -> tuple[Any, Callable[[], torch.Tensor]]:
    """Return the model of a row, and a function that computes its loss."""
    inputs = inputs_of(name)
    if name == PEFT:
        import peft

        config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=40)
        model: Any = peft.get_peft_model(backbone(), config).train()
        return model, lambda: model(**inputs).loss
    import mop_t5

    fields = {"others": "none"} if name in (DECODER_ONLY, CACHED) else {}
    model = mop_t5.attach(backbone(), "mop", scenarios=["taxi", "ticket", "hotel", "food", "film"], **fields).train()
    options: dict[str, Any] = {"scenario_ids": torch.arange(BATCH) % 5}
    if hasattr(type(model), "lm_head"):
        options["skip_logits"] = True  # as `mop-t5 train` asks
    if name == CACHED:
        from mop_t5.training import EncoderCache

        kept = EncoderCache(model, inputs["input_ids"].tolist(), cross=True)
        kept.fill()
        return model, lambda: model(**kept(inputs), **options).loss
    if name == RECOMPUTED:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    called = torch.compile(model, dynamic=True) if name == COMPILED else model
    return model, lambda: called(**inputs, **options).loss


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Return the seconds of each part of a step, from a profile. Profiled steps are slower: read the shares."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    seconds = dict.fromkeys([*PARTS, "all else"], 0.0)
    for event in found.key_averages():
        part = next((p for p, words in PARTS.items() if any(w in event.key for w in words)), "all else")
        seconds[part] += event.self_cpu_time_total / 1e6
    return {part: round(time, 3) for part, time in seconds.items()}


def answer(name: str, what: str) -> float | dict[str, float]:
    """Return the milliseconds of one step, the MB "saved" for backward, or a "profile"."""
    model, loss, step = step_of(name)
    if what == "saved":
        return saved_megabytes(loss, model)
    if what == "profile":
        return profiled(step)
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Run the command."""
    options = two_trees.parser_of("train_step", __doc__, rounds=7).parse_args()
    if options.serve:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return two_trees.serve(answer)
    from benchmarks.support import results

    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of the processes
    names = [MOP, PADDED, COMPILED, RECOMPUTED, FUSED, PLAIN, DECODER_ONLY, CACHED]
    names += [PEFT] * (importlib.util.find_spec("peft") is not None)
    with two_trees.answering(options.against, partial(two_trees.start, __file__), "mop_kernels", "python") as servers:
        every = [(name, tree) for name in names for tree in servers if tree == HERE or name in OF_OLD_TREES]
        questions = [(servers[tree], f"{name}|time") for name, tree in every]
        two_trees.ask_in_turn(questions, 1)  # load, start threads, fill caches
        rows = []
        for (name, tree), times_ms in zip(every, two_trees.ask_in_turn(questions, options.rounds)):
            kind = "peer" if name == PEFT else "ours" if tree == HERE else "before"
            saved = None if name in (FUSED, PLAIN) else two_trees.ask(servers[tree], f"{name}|saved")
            label = name if tree == HERE else f"{name}, {tree}"
            rows.append(results.row_of(GROUP, label, kind, times_ms, saved_mb=saved))
        profiles = {tree: two_trees.ask(process, f"{MOP}|profile") for tree, process in servers.items()}
    notes = []
    for tree, parts in profiles.items():
        total = sum(parts.values())
        notes += [f"\n{tree}:", *(f"  {part} {time:.2f} s ({time / total:.0%})" for part, time in parts.items())]
    two_trees.report("train_step", rows, *notes, keep=options.keep, profiles=profiles)


if __name__ == "__main__":
    main()
