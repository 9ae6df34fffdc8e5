#!/usr/bin/env bash
# torch 2.13.0, CPU. scaled_dot_product_attention with a float mask of torch.finfo(float32).min, as it is made for left
# padded batches: the first rows may see no key at all. Their outputs are the mean of the values in both backends.
# Guessed: the backends agree in the gradients, too. Seen: the flash backend, which is chosen by itself, gives such a row the
# gradient times the number of keys (6 here). A boolean mask and -inf give zeros in both backends.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

torch.manual_seed(0)
query, key, value = (torch.randn(1, 1, 6, 8) for _ in range(3))
visible = torch.ones(6, 6, dtype=torch.bool).tril()
visible[:, :2] = False  # two tokens of padding on the left: rows 0 and 1 see nothing
mask = torch.zeros(1, 1, 6, 6).masked_fill(~visible, torch.finfo(torch.float32).min)


def run(backend):
    rows = query.clone().requires_grad_()
    with sdpa_kernel(backend):
        out = attention(rows, key, value, attn_mask=mask)
    (gradient,) = torch.autograd.grad(out.sum(), rows)
    return out[0, 0], gradient[0, 0]


(out, wanted), (flash_out, flash) = run(SDPBackend.MATH), run(SDPBackend.FLASH_ATTENTION)
chosen = query.clone().requires_grad_()
(by_itself,) = torch.autograd.grad(attention(chosen, key, value, attn_mask=mask).sum(), chosen)
ratios = [(flash[row].norm() / wanted[row].norm()).item() for row in (0, 1, 3, 4, 5)]
print("largest difference of the outputs:", (out - flash_out).abs().max().item())
print("norm of the query's gradient, flash over math; rows without a key:", ratios[:2], "with keys:", ratios[2:])
assert torch.allclose(out, flash_out, atol=1e-6) and torch.equal(by_itself[0, 0], flash), "changed"
assert all(abs(ratio - 6) < 1e-3 for ratio in ratios[:2]) and all(abs(r - 1) < 1e-3 for r in ratios[2:]), "changed"
PYTHON
