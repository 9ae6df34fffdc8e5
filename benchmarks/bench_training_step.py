"""One training step of a frozen T5-base: without prefixes, with an MLP generator, with MOP; and MOP's share of it.

A step is forward, backward and AdamW. Without prefixes nothing of a frozen model is trained; there the gradient goes
to the input embeddings, so that backward passes all layers as it does with prefixes. The batch is small (8 dialogues
of 64 tokens, 32 summary tokens), which is against us: the generator's cost does not grow with the batch.
"""

import sys

import mop_t5
import pytest
import torch
from mop_t5.attachment import attention as prefix_attention

import mop_kernels as mk
from mop_kernels import testing

SCENARIOS = ["taxi", "ticket", "hotel", "food", "film"]
TINY = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "vocab_size": 64}
SMALL_MOP = {"prefix_length": 4, "d_mid": 16, "terms_down": 4, "terms_up": 4}
GROUP = "training step, frozen T5-base, 8 x (64 -> 32) tokens"


@pytest.fixture(scope="module")
def backbone(full_size):
    return mop_t5.build_backbone("t5-base", **({} if full_size else TINY))


@pytest.fixture(scope="module")
def batch(backbone, full_size):
    g = torch.Generator().manual_seed(0)
    size, source, target = (8, 64, 32) if full_size else (5, 6, 4)

    def tokens(length):
        return torch.randint(2, backbone.config.vocab_size, (size, length), generator=g)

    return {"input_ids": tokens(source), "labels": tokens(target)}, torch.arange(size) % len(SCENARIOS)


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd keeps for backward, each storage once, parameters aside. Exact, whatever else runs."""

    def __init__(self, model):
        self.storages = {}
        self.parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            self.storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    def megabytes(self) -> float:
        return round(sum(storage.nbytes() for storage in self.storages.values()) / 1e6, 1)


def attached(backbone, method, full_size):
    """The backbone with the method; the caller detaches."""
    torch.manual_seed(0)
    sizes = {} if full_size else SMALL_MOP
    if method == "prefix_tuning":
        sizes = {key: sizes[key] for key in sizes if not key.startswith("terms")}
    return mop_t5.attach(backbone, method, scenarios=SCENARIOS, **sizes).train()


# queries from which keys and values are concatenated with the prefix; None: the default
CASES = {
    "MOP": ("mop", None),
    "MOP, concatenated in every attention": ("mop", 1),
    "MOP, concatenated in none": ("mop", sys.maxsize),
    "MLP generator (prefix-tuning)": ("prefix_tuning", None),
}


@pytest.mark.parametrize("name", CASES)
def test_step_with_prefixes(name, backbone, batch, full_size, timed, monkeypatch):
    method, long_query = CASES[name]
    if long_query is not None:
        monkeypatch.setattr(prefix_attention, "_LONG_QUERY", long_query)
    model = attached(backbone, method, full_size)
    try:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        inputs, scenario_ids = batch

        def step():
            loss = model(**inputs, scenario_ids=scenario_ids).loss
            loss.backward()
            gradients = [p.grad for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach(), gradients

        saved = SavedTensors(model)
        with saved:
            loss, gradients = step()
        assert loss.isfinite()
        assert sum(g is not None for g in gradients) == len(trained)  # all of the method's, none of the backbone's
        timed(step, GROUP, name, kind="ours" if name == "MOP" else "form", saved_mb=saved.megabytes())
    finally:
        mop_t5.detach(backbone)


def test_step_without_prefixes(backbone, batch, timed):
    inputs, _ = batch
    embeddings = backbone.shared(inputs["input_ids"]).detach().requires_grad_()

    def step():
        return torch.autograd.grad(backbone(inputs_embeds=embeddings, labels=inputs["labels"]).loss, embeddings)

    assert step()[0].isfinite().all()
    timed(step, GROUP, "without prefixes", kind="form")


@pytest.mark.parametrize("part", ["all prefixes (mop_ffn and two MLP generators)", "mop_ffn"])
def test_generator(part, backbone, batch, full_size, timed):
    model = attached(backbone, "mop", full_size)
    _, scenario_ids = batch

    def forward():
        if part == "mop_ffn":
            return model.mop.experts["decoder_self"](model.mop.input)
        return [t for pairs in model.mop.additions(scenario_ids).prefixes.values() for pair in pairs for t in pair]

    try:
        with torch.no_grad():
            with mk.use_backend("reference"):
                expected = forward()
            for found, right in zip(forward(), expected, strict=True):
                assert testing.relative_error(found, right.double()) < 1e-5
        grads = [torch.randn_like(y) for y in expected]
        modules = model.mop.experts if part == "mop_ffn" else model.mop
        leaves = [model.mop.input, *(p for p in modules.parameters() if p is not model.mop.input)]

        def both():
            return torch.autograd.grad(forward(), leaves, grads)

        timed(
            both, "MOP's generator in that step: forward + backward", part, kind="ours" if part == "mop_ffn" else "form"
        )
    finally:
        mop_t5.detach(backbone)
