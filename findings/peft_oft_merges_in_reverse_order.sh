#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0. A linear layer with two active OFT adapters, which are two rotations.
# Guessed: merge_adapter(["a", "b"]) computes what the active adapters ["a", "b"] compute. Seen: it computes something else,
# without an error; merging ["b", "a"] gives the same as the active ["a", "b"]. BOFT and HRA, whose order matters as well,
# merge in the order in which they act.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0 \
    peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import peft
import torch


@torch.no_grad()
def errors(config):
    """The errors of both orders of merging, relative to the effect of the adapters."""
    torch.manual_seed(0)
    base, x = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.randn(3, 8)
    plain = base(x)
    model = peft.get_peft_model(base, config, adapter_name="a")
    model.add_adapter("b", config)
    model.base_model.set_adapter(["a", "b"])
    model.eval()
    for name, parameter in model.named_parameters():
        if "base_layer" not in name:
            parameter.normal_(0, 0.3)
    active = model(x)
    seen = []
    for order in (["a", "b"], ["b", "a"]):
        model.merge_adapter(order)
        seen.append(((model(x) - active).abs().max() / (active - plain).abs().max()).item())
        model.unmerge_adapter()
    return seen


print("peft", peft.__version__)
configs = (
    peft.OFTConfig(target_modules=["0"], oft_block_size=4, r=0),
    peft.BOFTConfig(target_modules=["0"], boft_block_size=4),
    peft.HRAConfig(target_modules=["0"], r=2),
)
for config, reverse in zip(configs, (True, False, False)):
    same, other = errors(config)
    print(f"{type(config).__name__}: active [a, b] against merged [a, b] {same:.1e}, merged [b, a] {other:.1e}")
    assert (same > 0.01, other > 0.01) == (reverse, not reverse), "changed"
PYTHON
