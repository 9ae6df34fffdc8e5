#!/usr/bin/env bash
# bitsandbytes 0.50.2 on torch 2.13.0, a CPU with AVX512-BF16. The first call of a Linear4bit in evaluation mode repacks
# its weight in place for a faster kernel. Guessed: this changes no result beyond rounding, training continues after it,
# and state_dict() gives the layer back as it was. Seen: the input gets no gradient any more, in training mode, too (a
# warning of torch names gemv_4bit); the scales are rounded to bfloat16; and state_dict(), which unpacks the weight,
# leaves the scales of an input wider than 64 in another order: the outputs are wrong by as much as they are large.
# `layer.support_avx512bf16_for_cpu = False` keeps the layer as it is. A CPU without AVX512-BF16 does not repack.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
grep -q avx512_bf16 /proc/cpuinfo || { echo "this CPU has no AVX512-BF16: nothing to see"; exit 0; }
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 bitsandbytes==0.50.2
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from bitsandbytes.nn import Linear4bit


def layer(repacks):
    torch.manual_seed(0)
    made = Linear4bit(128, 64, bias=False, quant_type="nf4", compress_statistics=False)
    made.weight.data.normal_()
    made = made.to("cpu").requires_grad_(False)  # quantises
    made.support_avx512bf16_for_cpu &= repacks
    return made


x = torch.randn(3, 128)


def trained(made):
    """The output in training mode, and whether the input gets a gradient."""
    row = x.clone().requires_grad_()
    out = made.train()(row)
    (gradient,) = torch.autograd.grad(out.sum(), row, allow_unused=True)
    return out.detach(), gradient is not None


seen = {}
for repacks in (False, True):
    made = layer(repacks)
    before, _ = trained(made)
    made.eval()(x)
    after, has_gradient = trained(made)
    made.state_dict()
    later, _ = trained(made)
    size = before.abs().max()
    rounding, wrong = ((out - before).abs().max() / size for out in (after, later))
    seen[repacks] = has_gradient, bool(rounding > 1e-4), bool(wrong > 0.1)
    print(f"repacks: {repacks}; gradient after evaluation: {has_gradient}; error {rounding:.4f}, later {wrong:.2f}")
assert seen == {False: (True, False, False), True: (False, True, True)}, "changed"
PYTHON
