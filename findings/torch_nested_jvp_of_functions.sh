#!/usr/bin/env bash
# torch 2.13.0, CPU. A product as an autograd.Function with setup_context and jvp, written as PyTorch's documentation has it.
# One level of torch.func.jvp is right, and so is jvp of grad. Two levels of jvp lose the inner tangent: the second
# derivative in two directions comes out as zero, without an error. The same with x * y as a plain operation is right.
# Seen: 0.0 by the Function and 70.0 by the plain product.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.func import grad, jvp


class Product(torch.autograd.Function):
    @staticmethod
    def forward(x, y):
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y, g * x

    @staticmethod
    def jvp(ctx, dx, dy):
        x, y = ctx.saved_tensors
        return dx * y + x * dy


def twice(f):
    x, y = torch.tensor(2.0), torch.tensor(3.0)
    inner = lambda x, y: jvp(f, (x, y), (torch.tensor(5.0), torch.tensor(7.0)))[1]
    return jvp(inner, (x, y), (torch.tensor(5.0), torch.tensor(7.0)))[1].item()


def of_grad(f):
    x, y = torch.tensor(2.0), torch.tensor(3.0)
    return jvp(grad(lambda y: f(x, y) * y), (y,), (torch.tensor(1.0),))[1].item()


plain = lambda x, y: x * y
print("torch", torch.__version__)
print("jvp of jvp: Function", twice(Product.apply), "plain", twice(plain))
print("jvp of grad: Function", of_grad(Product.apply), "plain", of_grad(plain))
assert (twice(Product.apply), twice(plain)) == (0.0, 70.0), "changed"
assert of_grad(Product.apply) == of_grad(plain), "changed"
PYTHON
