#!/usr/bin/env bash
# torch 2.13.0, CPU. An op with a gradient formula from torch.library.register_autograd has no forward mode. Where its
# input asks for no gradient, forward mode does not say so: the tangent through the op is dropped. torch.func.jvp and
# jacfwd then return zeros, or, beside other terms, a sum without the op's part. With requires_grad=True it does raise.
# Seen: d/dx (10 x + x^3) at 2 is 10 by jacfwd and 22 by backward.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.autograd import forward_ad


@torch.library.custom_op("finding::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


cube.register_autograd(
    lambda ctx, g: 3 * g * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
x = torch.tensor([2.0])
print("torch", torch.__version__)
by_forward = torch.func.jacfwd(lambda x: 10 * x + cube(x))(x).item()
leaf = x.clone().requires_grad_()
by_reverse = torch.autograd.grad(10 * leaf + cube(leaf), leaf)[0].item()
print("d/dx (10 x + x^3) at 2: jacfwd", by_forward, "backward", by_reverse)
with forward_ad.dual_level():
    tangent = forward_ad.unpack_dual(cube(forward_ad.make_dual(x, torch.ones(1)))).tangent
    print("the tangent of the op's result:", tangent)
    try:
        cube(forward_ad.make_dual(x.clone().requires_grad_(), torch.ones(1)))
        raised = None
    except NotImplementedError as error:
        raised = str(error)
    print("with requires_grad=True:", raised)
assert (by_forward, by_reverse, tangent) == (10.0, 22.0, None) and raised, "changed"
PYTHON
