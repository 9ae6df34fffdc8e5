"""One training step of a frozen T5-base: without prefixes, with an MLP generator, with MOP; and MOP's share of it.

A step is forward, backward and AdamW. Without prefixes nothing of a frozen model is trained. Then the gradient goes to
the input embeddings, so that backward passes all layers as it does with prefixes. The batch is small (8 dialogues of 64
tokens, 32 summary tokens). A small batch is our worst case, because the generator's cost does not grow with the batch.
"""

import sys

import pytest
import torch
from mop_t5.attachment import attention

import mop_kernels as mk
from benchmarks.support.t5 import saved_megabytes, training_step
from mop_kernels import testing

GROUP = "training step, frozen T5-base, 8 x (64 -> 32) tokens"


# queries from which keys and values are concatenated with the prefix; None: the default
CASES = {
    "MOP": ("mop", None),
    "MOP, concatenated in every attention": ("mop", 1),
    "MOP, concatenated in none": ("mop", sys.maxsize),
    "MLP generator (prefix-tuning)": ("prefix_tuning", None),
}


@pytest.mark.parametrize("name", CASES)
def test_step_with_prefixes(name, attach, mop_fields, batch, timed, monkeypatch):
    method, long_query = CASES[name]
    if long_query is not None:
        monkeypatch.setattr(attention, "_LONG_QUERY", long_query)
    fields = {key: size for key, size in mop_fields.items() if method == "mop" or not key.startswith("terms")}
    model = attach(method, **fields).train()
    step = training_step(model, batch, learning_rate=1e-4)
    saved_mb = saved_megabytes(step, model)
    timed(step, GROUP, name, kind="ours" if name == "MOP" else "form", saved_mb=saved_mb)


def test_step_without_prefixes(backbone, batch, timed):
    inputs, _ = batch
    embeddings = backbone.shared(inputs["input_ids"]).detach().requires_grad_()

    def step():
        return torch.autograd.grad(backbone(inputs_embeds=embeddings, labels=inputs["labels"]).loss, embeddings)

    assert step()[0].isfinite().all()
    timed(step, GROUP, "without prefixes", kind="form")


@pytest.mark.parametrize("part", ["all prefixes (mop_ffn and two MLP generators)", "mop_ffn"])
def test_generator(part, attach, mop_fields, batch, timed):
    mop = attach("mop", **mop_fields).train().mop
    _, scenario_ids = batch

    def forward():
        if part == "mop_ffn":
            return mop.experts["decoder_self"](mop.input)
        return [t for pairs in mop.additions(scenario_ids).prefixes.values() for pair in pairs for t in pair]

    with torch.no_grad():
        with mk.use_backend("reference"):
            expected = forward()
        for found, right in zip(forward(), expected, strict=True):
            assert testing.relative_error(found, right.double()) < 1e-5
    grads = [torch.randn_like(y) for y in expected]
    modules = mop.experts if part == "mop_ffn" else mop
    leaves = [mop.input, *(p for p in modules.parameters() if p is not mop.input)]

    def both():
        return torch.autograd.grad(forward(), leaves, grads)

    kind = "ours" if part == "mop_ffn" else "form"
    timed(both, "MOP's generator in that step: forward + backward", part, kind=kind)
