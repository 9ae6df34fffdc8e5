"""Peak memory of training a system. Each measurement is a process of its own.

`python -m mop_lab.attempt.training_memory` reads a measurement as JSON and prints the bytes. On a GPU the number is
torch.cuda.max_memory_allocated. On a CPU it is the size of the backbone's weights plus the growth of resident memory
(VmHWM) above them. Both count the weights, the method, its gradients and optimizer states, and the activations.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import mop_t5
import torch
from mop_t5.checks import check_choice, check_least
from mop_t5.evaluation import Table
from mop_t5.methods import get
from transformers import PreTrainedModel, T5Config

from mop_lab.attempt.memory import ENVIRONMENT, growth
from mop_lab.suites.sizes import skeleton

# from the paper's text; the numbers of its table are not available
PAPER = (
    "The ATTEMPT paper, on GPUs of 24 GB, 100 prompt rows, from T5-base with batch 32 to T5-3B with batch 2: ATTEMPT "
    "13.7 -> 16.1 GB; Adapter and BitFit to about three times of what they need with T5-base.",
)
_TINY = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, vocab_size=64)


@dataclass(frozen=True)
class Step:
    """A training step to measure.

    Attributes:
        batch_size: Rows per batch.
        source: Dialogue tokens per row.
        target: Summary tokens per row.
        device: "cpu" or "cuda".
        bf16: True if the step runs under bfloat16 autocast.
    """

    batch_size: int
    source: int
    target: int
    device: str
    bf16: bool

    def __post_init__(self):
        check_least(self, 1, "batch_size", "source", "target")
        check_choice("device", self.device, ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("device 'cuda' was asked for, but torch finds no GPU. Choose 'cpu'.")


def peak_memory(backbone: str, method: str, options: dict, scenarios: int, step: Step) -> int:
    """Return the bytes at the peak of two training steps by AdamW, measured in a process of its own.

    Args:
        backbone: A known architecture, which gets random weights, or a folder.
        method: The name of the method.
        options: The fields of the method.
        scenarios: Scenarios per batch.
        step: The training step.

    Raises:
        RuntimeError: The process failed. The message quotes its last line.
    """
    job = {"backbone": backbone, "method": method, "options": options, "scenarios": scenarios, "step": asdict(step)}
    done = subprocess.run(
        [sys.executable, "-m", "mop_lab.attempt.training_memory"],
        input=json.dumps(job),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, as where memory ran out"])[-1]
        raise RuntimeError(f"{method} on {backbone} could not be measured: {said}")
    return int(done.stdout.splitlines()[-1])


def memory_table(
    backbones: Sequence[str], batch_sizes: Sequence[int], cells: Mapping[str, Sequence[int]], step: Step
) -> Table:
    """Return a table with one row per system. The paper's figures are notes.

    Args:
        backbones: The backbones, one column each.
        batch_sizes: The batch size on each backbone.
        cells: label of a system -> bytes on each backbone.
        step: The training step, for the title.
    """
    columns = [f"{name}, batch {size}, GB" for name, size in zip(backbones, batch_sizes)]
    rows: list[list[object]] = []
    for label, sizes in cells.items():
        gigabytes = [size / 1e9 for size in sizes]
        rows.append([label, *gigabytes, *([gigabytes[-1] / gigabytes[0]] if len(sizes) > 1 else [])])
    if len(backbones) > 1:
        columns.append("last / first")
    what = "max_memory_allocated" if step.device == "cuda" else "weights and growth of resident memory"
    precision = "bfloat16 autocast" if step.bf16 else "float32"
    lengths = f"{step.source} source and {step.target} target tokens"
    title = f"Peak memory of training on {step.device} ({what}), {precision}, {lengths}"
    return Table(title, ["system", *columns], rows, dict.fromkeys(columns, ".3f"), PAPER)


def _measure(backbone: str, method: str, options: dict, scenarios: int, step: Step) -> int:
    config = get(method).Config.make({"scenarios": [f"task {i + 1}" for i in range(scenarios)], **options})
    model = skeleton(backbone, step.device)
    torch.nn.Module.to(model, step.device)

    def train() -> object:
        mop_t5.attach(model, config)
        return _two_steps(model, step, scenarios)

    if step.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # making random weights has its own peak
        train()
        return torch.cuda.max_memory_allocated()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.sum()  # weights in a file become resident when they are first used
    # a tiny model loads the code and starts the threads
    tiny = mop_t5.build_backbone(_TINY).requires_grad_(True)
    _two_steps(tiny, replace(step, batch_size=1, source=2, target=2), None)
    return weights + growth(train)


def _two_steps(
    model: PreTrainedModel, step: Step, scenarios: int | None
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """Take two steps. At the second step the optimizer's states exist from its start."""
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(2, model.config.vocab_size, (step.batch_size, length), device=step.device)

    batch = {"input_ids": tokens(step.source), "labels": tokens(step.target)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if scenarios is not None:
        batch["scenario_ids"] = torch.arange(step.batch_size) % scenarios
    model.train()
    for _ in range(2):
        with torch.autocast(step.device, torch.bfloat16, enabled=step.bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


if __name__ == "__main__":
    job = json.load(sys.stdin)
    print(_measure(**job | {"step": Step(**job["step"])}))
