#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0. UniPELT, LoRA and bottleneck adapters with use_gating=True on a T5.
# Guessed: the gate belongs to a token, so a decoder stays causal: its first logits do not depend on later tokens. Seen: one
# gate is the mean over all tokens of the sequence. The loss of training sees the labels to come, and generate, which has
# one token at a time, computes something else. Without the gate the first logits are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==4.57.6 adapters==1.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import adapters
import torch
from adapters import LoRAConfig, PrefixTuningConfig, SeqBnConfig, UniPELTConfig
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
source = torch.arange(2, 12)[None]
target = torch.tensor([[0, 5, 6, 7, 8, 9]])
other = torch.tensor([[0, 5, 6, 7, 8, 44]])  # another last token


@torch.no_grad()
def changes(config):
    """The change of the first and of the last logits when the last target token changes."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, initializer_factor=3.0))
    adapters.init(model)
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    for parameter in model.parameters():
        if parameter.requires_grad:  # stands for a training
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.eval()
    one, two = (model(input_ids=source, decoder_input_ids=ids).logits[0] for ids in (target, other))
    return [(one - two)[place].abs().max().item() for place in (0, -1)]


print("adapters", adapters.__version__)
configs = {
    "UniPELT": UniPELTConfig(prefix_tuning=PrefixTuningConfig(prefix_length=4), adapter=SeqBnConfig(reduction_factor=4)),
    "LoRA with a gate": LoRAConfig(use_gating=True),
    "bottleneck with a gate": SeqBnConfig(reduction_factor=4, use_gating=True),
    "LoRA": LoRAConfig(),
    "bottleneck": SeqBnConfig(reduction_factor=4),
}
for name, config in configs.items():
    first, last = changes(config)
    print(f"{name}: the first logits change by {first:.4f}, the last by {last:.4f}")
    assert last > 0.1 and (first > 1e-3) == ("gate" in name or name == "UniPELT"), "changed"
PYTHON
