"""Stored numbers: Compacter's PHM layer as its authors' code computes it, and MOP from the paper's equations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mop_kernels as mk
from mop_kernels import MOPFeedForward, PHMLinear

GOLDEN = Path(__file__).parents[1] / "golden"
COMPACTER = load_file(GOLDEN / "compacter_phm.safetensors")
CASES = ("plain", "factW_r1", "factW_r3", "factrule", "factboth_r2", "p1")
MOP = {name: load_file(GOLDEN / f"mop_{name}.safetensors") for name in ("readingA_p4q2r1", "readingB_p2q4r2")}
MODES = [
    *(("readingA_p4q2r1", mode) for mode in ("full", "no_lorl", "no_lore", "no_both", "no_lowrank")),
    ("readingB_p2q4r2", "full"),
]
OURS = {  # Compacter's names
    "rule": "phm_rule",
    "rule_in": "phm_rule_left",
    "rule_out": "phm_rule_right",
    "local": "W",
    "local_left": "W_left",
    "local_right": "W_right",
    "bias": "b",
}
PLACES = {"down": "down", "ups.0": "upk", "ups.1": "upv"}


def assert_near(actual, stored, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(actual, stored.to(actual.device, dtype), rtol=tolerance, atol=tolerance)


def test_kronecker_products(backend, float64):
    a, b = COMPACTER["kron.A"], COMPACTER["kron.B"]
    each = mk.phm_weight(a[:, None], b[:, None], backend=backend)
    assert_near(each, COMPACTER["kron.out"], float64)
    assert_near(mk.phm_weight(a, b, backend=backend), COMPACTER["kron.sum0"], float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_compacter(case, dtype, backend):
    stored = {key.removeprefix(case + "."): t for key, t in COMPACTER.items() if key.startswith(case + ".")}
    rank = stored["param.phm_rule_left"].shape[-1] if "param.phm_rule_left" in stored else None
    local_rank = stored["param.W_left"].shape[-1] if "param.W_left" in stored else None
    x = stored["x"].to(torch.get_default_device(), dtype, copy=True).requires_grad_()
    layer = PHMLinear(x.shape[1], stored["y"].shape[1], 1 if case == "p1" else 4, rank, local_rank, dtype=dtype)
    layer.load_state_dict({name: stored["param." + OURS[name]] for name in layer.state_dict()})
    with mk.use_backend(backend):
        y = layer(x)
    y.backward(stored["gy"].to(y))
    assert_near(y, stored["y"], dtype)
    assert_near(x.grad, stored["gx"], dtype)
    for name, parameter in layer.named_parameters():
        assert_near(parameter.grad, stored["grad." + OURS[name]], dtype)


def grouped(tensor, name):
    """A stored factor with both leading group dims (layers, experts)."""
    if name == "G":
        return tensor[None, None]
    if name == "local" or tensor.dim() == 5:
        return tensor
    return tensor[None] if name == "l" else tensor[:, None]  # l one an expert; e and b one a layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("file", "mode"), MODES)
def test_mop(file, mode, dtype, backend):
    stored = {key.removeprefix(mode + "."): t for key, t in MOP[file].items() if key.startswith(mode + ".")}
    reading_a = file.startswith("readingA")
    mop = MOPFeedForward(
        num_layers=2,
        num_experts=3,
        d_in=12,
        d_mid=8,
        d_out=12,
        terms_down=4 if reading_a else 2,
        terms_up=2 if reading_a else 4,
        rank=1 if reading_a else 2,
        reading="A" if reading_a else "B",
        share_lorl=mode not in ("no_lorl", "no_both"),
        share_lore=mode not in ("no_lore", "no_both"),
        rule="full" if mode == "no_lowrank" else "low_rank",
        dtype=dtype,
    )
    letters = {"rule_in": "G" if mode == "no_lowrank" else "l", "rule_out": "e", "local": "local", "bias": "b"}

    def read(kind, name):
        place, field = name.rsplit(".", 1)
        return grouped(stored[f"{kind}.{PLACES[place]}.{letters[field]}"], letters[field])

    mop.load_state_dict({name: read("param", name) for name in mop.state_dict()})
    x = stored["param.X"].to(torch.get_default_device(), dtype, copy=True).requires_grad_()
    with mk.use_backend(backend):
        keys, values = mop(x)
        torch.autograd.backward([keys, values], [stored["gK"].to(keys), stored["gV"].to(values)])
        down, up = mop.weight_matrix(1, 2, "down"), mop.weight_matrix(0, 1, 0)
    # stored in float32, whatever they were computed in
    near = torch.float32
    assert_near(keys.to(near), stored["K"], near)
    assert_near(values.to(near), stored["V"], near)
    assert_near(x.grad.to(near), stored["grad.X"], near)
    assert_near(down.to(near), stored["W_down.layer1.expert2"], near)
    assert_near(up.to(near), stored["W_upk.layer0.expert1"], near)
    for name, parameter in mop.named_parameters():
        assert_near(parameter.grad.to(near), read("grad", name), near)
