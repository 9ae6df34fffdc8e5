"""LoKr layers of PEFT that compute by their factors."""

import copy
import io
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import mop_kernels as mk
from mop_kernels.acceleration import peft_lokr

pytest.importorskip("peft")
from accelerated import assert_as_the_library, kernels_called, step
from forks import forks_of
from peft import LoKrConfig, get_peft_model

CASES = {
    "full": {"r": 64, "alpha": 32, "decompose_factor": 4},
    "low_rank": {"r": 2, "alpha": 3, "decompose_factor": 4},
    "both": {"r": 1, "alpha": 2, "decompose_both": True, "decompose_factor": 6},
    "square": {"r": 1, "alpha": 1, "decompose_factor": -1},
    "rank_dropout": {"r": 2, "alpha": 3, "decompose_factor": 4, "rank_dropout": 0.5},
    "rescaled": {"r": 64, "alpha": 64, "decompose_factor": 2, "rank_dropout": 0.3, "rank_dropout_scale": True},
    "module_dropout": {"r": 2, "alpha": 3, "decompose_factor": 4, "module_dropout": 0.5},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.conv, self.second = nn.Linear(24, 36), nn.Conv1d(1, 1, 1), nn.Linear(36, 12, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def config(**options):
    return LoKrConfig(target_modules=["first", "second"], init_weights=False, **options)


def peft_model(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return get_peft_model(Net(), config(**options)).to(dtype)


def rows(dtype=torch.float32):
    return torch.randn(5, 3, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_a_step(kind, options):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    autocast = torch.bfloat16 if kind == "autocast" else None
    calls = 1 if "module_dropout" in options else 2  # at this seed, one of the two layers is dropped
    assert_as_the_library(peft_model(dtype, **options), rows(dtype), calls=calls, autocast=autocast)


def test_several_adapters_disabled_merged_and_scaled():
    """accelerate serves adapters that come later, and PEFT decides which of them count."""
    model = peft_model(**CASES["low_rank"])
    report = mk.accelerate(model)
    assert report.accelerated == ("base_model.model.first", "base_model.model.second")
    assert not report.left
    torch.manual_seed(3)
    model.add_adapter("other", config(**CASES["full"]))
    plain = copy.deepcopy(model)
    assert mk.restore(plain) == report.accelerated
    x = rows()

    def same(calls):
        torch.testing.assert_close(model(x), plain(x))
        assert kernels_called(lambda: model(x)) == calls
        assert kernels_called(lambda: plain(x)) == 0

    same(2)
    for net in (model, plain):
        net.base_model.set_adapter(["default", "other"])
    same(4)
    for net in (model, plain):
        net.base_model.model.first.set_scale("other", 0.3)
        net.base_model.model.second.scale_layer(2.5)
    same(4)
    with model.disable_adapter(), plain.disable_adapter():
        same(0)
    for net in (model, plain):
        net.merge_adapter(["other"])
    same(0)
    for net in (model, plain):
        net.unmerge_adapter()
    same(4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values()))
    merged, expected = model.merge_and_unload(), plain.merge_and_unload()
    assert type(merged.first) is nn.Linear
    assert torch.equal(merged(x), expected(x))


def test_the_library_saves_and_loads(tmp_path):
    from peft import PeftModel

    model = peft_model(**CASES["both"])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    expected = model(rows())
    mk.accelerate(model)
    assert list(model.state_dict()) == list(before)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Net(), tmp_path)
    torch.testing.assert_close(loaded(rows()), expected)
    assert all(torch.equal(t, before[name]) for name, t in loaded.state_dict().items())


def test_copies_and_whole_models_on_disk():
    model = peft_model(**CASES["low_rank"])
    plain = type(model.base_model.model.first)
    mk.accelerate(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert kernels_called(lambda again=again: again(rows())) == 2
        assert torch.equal(again(rows()), model(rows()))
        mk.restore(again)
        assert type(again.base_model.model.first) is plain
        assert kernels_called(lambda again=again: again(rows())) == 0
    assert isinstance(model.base_model.model.first, plain)
    assert repr(model) == repr(again)


def test_a_convolution_is_left():
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoKrConfig(target_modules=["first", "conv"], r=2))
    report = mk.accelerate(model)
    assert report.accelerated == ("base_model.model.first",)
    assert list(report.left) == ["base_model.model.conv"]
    assert "convolution" in str(report)


def test_training_with_adamw():
    """The optimizer of before serves, and the losses are the library's."""
    losses = []
    for ours in (False, True):
        model = peft_model(**CASES["low_rank"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-2)
        if ours:
            mk.accelerate(model)
        losses.append([])
        for _ in range(5):
            loss = (model(rows()) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1][-1] < 0.9 * losses[1][0]


@pytest.mark.parametrize("options", [CASES["full"], CASES["low_rank"]], ids=["full", "low_rank"])
def test_compiled(options):
    """PEFT draws its module dropout in training, on which fullgraph=True fails with and without acceleration."""
    model = peft_model(**options).eval()
    expected = step(model, rows())
    mk.accelerate(model)
    torch.compiler.reset()
    found = step(torch.compile(model, fullgraph=True, backend="aot_eager"), rows(), parameters=model)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_gradient_checkpointing():
    """Rank dropout draws the same outputs again."""
    from torch.utils.checkpoint import checkpoint

    model = peft_model(**CASES["rank_dropout"])
    mk.accelerate(model)
    expected = step(model, rows())

    class Checkpointed(nn.Module):
        def forward(self, x):
            return checkpoint(model, x, use_reentrant=False)

    found = step(Checkpointed(), rows(), parameters=model)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_two_processes():
    """Each process has half of the rows. DDP gives the gradients of all rows."""
    code = """
import lokr_worker
from two_processes import in_two_processes
in_two_processes(lokr_worker.run)
"""
    with forks_of("import torch") as forks:
        assert forks.run(code).count("as one process") == 2


def test_second_derivatives():
    results = []
    for ours in (False, True):
        model = peft_model(torch.float64, **CASES["both"])
        if ours:
            mk.accelerate(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        x = rows(torch.float64).requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), trained))
    torch.testing.assert_close(results[1], results[0])


def test_the_example(capsys, monkeypatch):
    """It trains with and without acceleration."""
    linear, calls = peft_lokr.factored_linear, []
    monkeypatch.setattr(peft_lokr, "factored_linear", lambda *args: calls.append(1) or linear(*args))
    found = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "lokr_with_peft.py"))
    assert "accelerated: 16 layers" in capsys.readouterr().out
    assert found["losses"] == pytest.approx(found["plain"], rel=1e-4)
    assert found["losses"][-1] < found["losses"][0] - 1
    assert len(calls) == 16 * len(found["losses"])


def test_reference_backend_runs_the_library():
    model = peft_model(**CASES["full"])
    expected = model(rows())
    mk.accelerate(model)
    with mk.use_backend("reference"):
        assert torch.equal(model(rows()), expected)
    assert not torch.equal(model(rows()), expected)
