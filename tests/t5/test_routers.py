"""The ten routers: golden logits of the public code, the poster's parameter counts, wrong input."""

import pytest
import torch
from errors import raises
from mop_t5.methods.task_moe.routers import ROUTERS, make_router
from safetensors.torch import load_file

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/moe_routers.safetensors"
# by the widths 128 and 768 of the task vectors, with 6 + 6 layers, 3 experts, 64 hidden
COUNTS = {
    "linear": (10_596, 51_556),
    "linear_layer_specific": (101_412, 592_932),
    "rnn": (26_755, 116_355),
    "rnn_layer_specific": (116_099, 607_619),
    "lstm": (101_251, 436_611),
    "lstm_layer_specific": (166_019, 657_539),
    "gru": (76_419, 329_859),
    "gru_layer_specific": (149_379, 640_899),
    "transformer": (85_059, 2_476_099),
    "transformer_layer_specific": (124_483, 616_003),
}


def golden_state(stored, name):
    """The parameters of the public code by our names: ours has one tensor for the maps of all layers."""
    prefix = f"{name}.param."
    state = {key.removeprefix(prefix): value.double() for key, value in stored.items() if key.startswith(prefix)}
    if name != "linear_layer_specific":
        return {key.replace("rnn.", "mixer.").replace("transformer.", "mixer."): v for key, v in state.items()}
    layers = range(1 + max(int(key.split(".")[1]) for key in state))
    maps = {key.split(".", 2)[2] for key in state}
    return {key: torch.stack([state[f"router_units.{layer}.{key}"] for layer in layers]) for key in maps}


@pytest.mark.parametrize("name", ROUTERS)
def test_golden(name):
    stored = load_file(GOLDEN)
    router = make_router(name, d_in=8, hidden=12, layers=5, experts=3, dtype=torch.float64).eval()
    router.load_state_dict(golden_state(stored, name))
    expected = torch.cat([stored[f"{name}.enc"], stored[f"{name}.dec"]]).double()
    logits = router(stored["task_embed"].double())
    assert logits.shape == (5, 4, 3)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ROUTERS)
def test_parameter_counts(name):
    for width, count in zip((128, 768), COUNTS[name]):
        router = make_router(name, width, 64, 12, 3, device="meta")
        assert sum(p.numel() for p in router.parameters()) == count


@pytest.mark.parametrize("name", ROUTERS)
def test_tasks_do_not_see_each_other_and_every_parameter_learns(name):
    torch.manual_seed(0)
    router = make_router(name, 8, 12, 3, 2, dtype=torch.float64).eval()
    tasks = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    logits = router(tasks)
    torch.testing.assert_close(router(tasks[[2, 0]]), logits[:, [2, 0]])
    weights = torch.randn(logits.shape, dtype=torch.float64)
    (logits * weights).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in router.parameters())
    assert tasks.grad.abs().amin(1).all()
    assert (logits.var(0) > 1e-6).all(), "layers must differ"
    router.train()
    assert router(tasks).equal(router(tasks)) == ("transformer" not in name), "only the transformers drop out"


def test_layers_of_one_product_start_as_linear_layers_do():
    torch.manual_seed(0)
    router = make_router("linear_layer_specific", 768, 64, 12, 3)
    for module, bound in ((router.linear1, 768**-0.5), (router.linear2, 64**-0.5)):
        for parameter in (module.weight, module.bias):
            largest = parameter.abs().flatten(1).amax(1)
            assert (largest <= bound).all()
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not module.weight[0].equal(module.weight[1])


def test_wrong_input():
    with raises(ValueError, "router", "'linear', 'linear_layer_specific'", "'mlp'"):
        make_router("mlp", 8, 12, 2, 3)
    with raises(ValueError, "width", "task vectors", "multiple of 4", "6"):
        make_router("transformer", 6, 12, 2, 3)
    with raises(ValueError, "hidden", "multiple of 4", "10"):
        make_router("transformer_layer_specific", 6, 10, 2, 3)
    make_router("gru", 6, 10, 2, 3)
