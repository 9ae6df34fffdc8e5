#!/usr/bin/env bash
# lycoris-lora 4.1.3, torch 2.13.0, CPU.
# Expected: after merge_to, a LoKr layer computes what it computed before, because merging adds the same update to the
# weight. Seen: the forward pass multiplies the update by alpha/rank, and merge_to by (alpha/rank)^2. So a merged layer
# computes something else without an error, unless alpha equals the rank. LoCon of the same package merges correctly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 lycoris-lora==4.1.3
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from lycoris import LoConModule, LokrModule


def ratio(module_class, **options):
    """Return (merged output - base output) / (output - base output), one number for all elements."""
    torch.manual_seed(0)
    base = torch.nn.Linear(32, 32, bias=False)
    x = torch.randn(3, 32)
    with torch.no_grad():
        plain = base(x)
        lora = module_class("", base, lora_dim=2, alpha=6, **options)
        for parameter in lora.parameters():
            parameter.normal_()
        lora.apply_to()
        before = base(x) - plain
        lora.restore()
        lora.merge_to()
        return ((base(x) - plain) / before).median().item()


locon, lokr = ratio(LoConModule), ratio(LokrModule, factor=4)
print(f"update after merge_to over update before, alpha/rank = 3: LoCon {locon:.4f}, LoKr {lokr:.4f}")
raise SystemExit(not (abs(locon - 1) < 1e-3 and abs(lokr - 3) < 1e-3))
PYTHON
