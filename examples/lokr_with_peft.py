"""Train LoKr adapters of PEFT with and without mop_kernels.accelerate: the same losses, and the time per step.

    pip install peft
    python examples/lokr_with_peft.py

The model is a small T5 with random weights, which learns to repeat its input. For real work, replace it by
T5ForConditionalGeneration.from_pretrained("folder-or-hub-name"). `accelerate` takes the LoKr layers of any model.
"""

import time

import torch
from peft import LoKrConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

import mop_kernels

STEPS = 6


def train(accelerated: bool) -> tuple[list[float], float]:
    """Return the losses, and the median seconds per step."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 1, "num_heads": 8}
    backbone = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))
    options = {"r": 16, "alpha": 16, "decompose_factor": 4, "target_modules": ["q", "k", "v", "o", "wi", "wo"]}
    model = get_peft_model(backbone, LoKrConfig(**options))
    if accelerated:
        print(mop_kernels.accelerate(model))

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
    losses, seconds = [], []
    for _ in range(STEPS):
        ids = torch.randint(2, 100, (8, 32))
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())

    mop_kernels.restore(model)  # the layers of PEFT again; parameters, state dict and files are PEFT's in any case
    return losses, sorted(seconds)[STEPS // 2]


plain, plain_seconds = train(accelerated=False)
losses, seconds = train(accelerated=True)
for step, (before, after) in enumerate(zip(plain, losses), 1):
    print(f"step {step}: loss {before:.4f} with PEFT alone, {after:.4f} accelerated")
print(f"{1e3 * plain_seconds:.0f} ms per step with PEFT alone, {1e3 * seconds:.0f} ms accelerated")
