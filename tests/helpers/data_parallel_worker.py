"""What tests/t5/test_data_parallel.py runs in two processes, and in one.

Every process does the same and leaves what it has seen in FOLDER/rank-R.pt.
"""

import contextlib
import io
from pathlib import Path

import mop_t5
import torch
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Collator, EncodedExamples, synthetic_corpus
from mop_t5.evaluation import Scorer, Scores
from mop_t5.operations.run_folder import processes
from mop_t5.training import TrainingConfig, hold_absent_experts, train
from torch.nn.parallel import DistributedDataParallel
from transformers import T5Config

CORPUS = synthetic_corpus(2, general=120, train=60, valid=7, test=1)
SCENARIOS = ["e-commerce", "food", "take-out", "taxi", "ticket"]
TOKENIZER = train_tokenizer([text for row in CORPUS["general"] for text in (row.dialogue, row.summary)], 600)
RUNS = {  # name: settings for one process; two take half of the accumulation
    "homogeneous": {"batching": "homogeneous", "accumulation": 4},
    "mixed": {"batching": "mixed", "accumulation": 2, "label_smoothing": 0.1, "evaluate_every": 3, "patience": 9}
    | {"tokens_per_batch": 160},
}


def new_model():
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(vocab_size=len(TOKENIZER), pad_token_id=0, eos_token_id=1, **sizes)
    # a head of its own: with a tied one an untrained model repeats what it has just read
    model = mop_t5.build_backbone(config, seed=0, dtype=torch.float64, tie_word_embeddings=False)
    torch.manual_seed(0)
    return mop_t5.attach(model, "mop", scenarios=SCENARIOS, prefix_length=3, d_mid=8, terms_down=4, terms_up=4)


def rouge(references, texts):
    """A score that every row changes: a backbone that has learnt nothing has ROUGE 0."""
    return [Scores(len(t) / 100, len(set(t)) / 50, len(r) * len(t) / 1e4) for r, t in zip(references, texts)]


def weights(model):
    return {name: p.detach().clone() for name, p in model.mop.named_parameters()}


def trained(folder, name, steps, count, resume=False, model=None):
    model = model or new_model()
    fields = {"batch_size": 2, "learning_rate": 2e-3, "warmup_steps": 0, "log_every": 1, "max_target": 48}
    fields |= {"steps": steps, "save_every": 4, "schedule": "constant", **RUNS[name]}
    config = TrainingConfig(**fields | {"accumulation": fields["accumulation"] // count})
    result = train(
        model,
        TOKENIZER,
        CORPUS["train"],
        config,
        output=folder / name,
        valid=CORPUS["valid"],
        scorer=Scorer(rouge),
        resume=resume,
        progress=False,
    )
    return {"history": result.history, "weights": weights(model)}


def nan(folder):
    """One process has a NaN loss at step 3; all must stop there."""
    model = new_model()
    calls = []

    def poison(module, args, output):
        calls.append(weights(module))
        if len(calls) == 6 and processes().process_index == 1:
            output.loss = output.loss * float("nan")

    model.register_forward_hook(poison)
    try:
        trained(folder / "nan", "homogeneous", 8, 2, model=model)
    except FloatingPointError as error:
        return {"error": str(error), "kept": all(torch.equal(w, calls[4][n]) for n, w in weights(model).items())}
    return {"error": None}


def alone(count, rank):
    """A plain DDP loop. At each step the processes have rows of one scenario each; "food" has none from step 2 on."""
    model = new_model()
    rows = EncodedExamples(CORPUS["train"], TOKENIZER, SCENARIOS)
    of = {s: [rows[i] for i, e in enumerate(CORPUS["train"]) if e.scenario == s] for s in SCENARIOS}
    wrapped = DistributedDataParallel(model) if count > 1 else model
    optimizer = torch.optim.AdamW(model.mop.parameters(), lr=2e-3, weight_decay=0.5)
    hold_absent_experts(optimizer, model.mop.expert_parameters())
    seen = []
    for first, second in [("food", "taxi"), ("taxi", "e-commerce"), ("ticket", "taxi"), ("take-out", "take-out")]:
        mine = [of[first][:2], of[second][2:5]]
        batch = Collator(0, 5)(mine[rank] if count > 1 else mine[0] + mine[1])
        tokens = torch.tensor(sum(len(row["labels"]) for share in mine for row in share))
        optimizer.zero_grad()
        (wrapped(**batch, num_items_in_batch=tokens).loss * count).backward()  # DDP takes the mean over processes
        optimizer.step()
        seen.append(weights(model))
    return seen


def command(folder, backbone, corpus):
    from mop_t5.cli.main import main

    printed = io.StringIO()
    arguments = ["--corpus", corpus, "--backbone", backbone, "--output", folder / "command", "--steps", 2]
    arguments += ["--batch_size", 2, "--max_target", 8, "--log_every", 1, "--method", "prefix_tuning"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        codes = [main(["train", *map(str, arguments), *more]) for more in ([], [], ["--method", "mopp"])]
    return {"codes": codes, "printed": printed.getvalue()}


def nodes(folder, rank):
    """Train several seeds where no process sees the output folder of another, as on two machines."""
    from mop_t5.cli.main import main

    printed = io.StringIO()
    where = ["--corpus", folder / "corpus", "--backbone", folder / "backbone", "--output", folder / f"node-{rank}"]
    small = ["--steps", 1, "--batch_size", 2, "--max_target", 8, "--method", "prefix_tuning", "--seeds", "[0, 1]"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        codes = [main(["train", *map(str, [*where, *small]), *more]) for more in (["--dry_run"], [])]
    return {"codes": codes, "printed": printed.getvalue()}


def run(folder: Path) -> None:
    team = processes()
    count, rank = team.num_processes, team.process_index
    found = {"ddp": alone(count, rank), "homogeneous": trained(folder, "homogeneous", 6, count)}
    found["mixed"] = trained(folder, "mixed", 10, count)
    if count > 1:
        found["resumed"] = trained(folder, "mixed", 12, count, resume=True)
        found["nan"] = nan(folder)
        found["command"] = command(folder, folder / "backbone", folder / "corpus")
        found["nodes"] = nodes(folder, rank)
    else:
        found["longer"] = trained(folder / "longer", "mixed", 12, count)
    torch.save(found, folder / f"rank-{rank}.pt")
    team.wait_for_everyone()
    team.destroy_process_group()
