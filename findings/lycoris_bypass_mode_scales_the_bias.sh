#!/usr/bin/env bash
# lycoris-lora 4.1.3, torch 2.13.0, CPU. `bypass_mode` of LyCORIS computes x -> base(x) + update(x) instead of building the
# changed weight. Quantised base layers need it.
# Guessed: the same outputs, as the weights are the same. Seen: IA3 and DiagOFT give others if the layer has a bias: they
# scale and rotate the bias, too. merge_to gives the outputs without bypass_mode. Without a bias all of them agree. LoCon
# agrees with and without a bias.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 lycoris-lora==4.1.3
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from lycoris.modules import DiagOFTModule, IA3Module, LoConModule


@torch.no_grad()
def outputs(module_class, bias, bypass):
    """The outputs of a layer before and after merge_to."""
    torch.manual_seed(0)
    base, x = torch.nn.Linear(16, 16, bias=bias), torch.randn(3, 16)
    module = module_class("", base, lora_dim=4, alpha=4, bypass_mode=bypass)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.normal_(0, 0.3)
    module.apply_to()
    before = base(x)
    module.restore()
    module.merge_to()
    return before, base(x)


for module_class in (IA3Module, DiagOFTModule, LoConModule):
    for bias in (True, False):
        (plain, merged), (bypassed, _) = (outputs(module_class, bias, bypass) for bypass in (False, True))
        error = (bypassed - plain).abs().max().item()
        print(f"{module_class.__name__}, bias {bias}: bypass_mode changes the outputs by {error:.1e}")
        assert torch.allclose(plain, merged, atol=1e-5), "changed"
        assert (error > 1e-3) == (bias and module_class is not LoConModule), "changed"
PYTHON
