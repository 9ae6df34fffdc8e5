"""Scenarios come and go: the others' outputs stay bit for bit, and a new one is trained alone."""

import copy

import mop_t5
import pytest
import small_training as setting
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.training import hold_absent_experts
from t5_oracle import batch, tiny

NAMES = ["taxi", "ticket", "food"]
FIELDS = {"scenarios": NAMES, "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4}
KINDS = {
    "default": {},
    "all attentions": {"attention": ["encoder_self", "decoder_self", "cross"]},
    "without LoRL and LoRE": {"share_lorl": False, "share_lore": False, "bias": "layer_expert"},
    "full rule, Reading B": {"rule": "full", "reading": "B", "bias": None, "layers": [1]},
    "experts counted": {"num_experts": 3},
    "X' and biases of an expert": {"input_scope": "expert", "bias": "expert", "kv_maps": "separate_down"},
    "dense experts": {"rule": "dense", "kv_maps": "joint"},
}


def trained(kind="default", dtype=torch.float32, **overrides):
    """Not a trained MOP, but one whose experts and biases all differ."""
    torch.manual_seed(3)
    model = mop_t5.attach(tiny(dtype=dtype), "mop", **{**FIELDS, **KINDS[kind], **overrides})
    with torch.no_grad():
        for parameter in model.mop.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model, name):
    ids = mop_t5.scenario_ids(model, [name] * 4)
    with torch.no_grad():
        return model(**batch(), scenario_ids=ids).logits


def mixed(model, names):
    with torch.no_grad():
        return model(**batch(), scenario_ids=mop_t5.scenario_ids(model, names)).logits


def step(model, names, optimizer):
    labels = batch()["decoder_input_ids"]
    optimizer.zero_grad()
    loss = model(**batch(), labels=labels, scenario_ids=mop_t5.scenario_ids(model, names)).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_others_stay_bit_for_bit(kind):
    model = trained(kind)
    before = {name: logits(model, name) for name in NAMES}
    together = mixed(model, ["food", "taxi", "ticket", "taxi"])
    mop_t5.add_scenario(model, "hotel")
    assert mop_t5.scenarios(model) == model.scenarios == (*NAMES, "hotel")
    assert all(torch.equal(logits(model, name), before[name]) for name in NAMES)
    assert torch.equal(mixed(model, ["food", "taxi", "ticket", "taxi"]), together)
    hotel = logits(model, "hotel")
    assert all(not torch.equal(hotel, old) for old in before.values())
    mop_t5.remove_scenario(model, "taxi")
    assert mop_t5.scenarios(model) == ("ticket", "food", "hotel")
    assert all(torch.equal(logits(model, name), before[name]) for name in ("ticket", "food"))
    assert torch.equal(logits(model, "hotel"), hotel)
    mop_t5.remove_scenario(model, "hotel")
    mop_t5.remove_scenario(model, "ticket")
    assert torch.equal(logits(model, "food"), before["food"])


def test_how_the_new_one_starts():
    model = trained()
    old = {name: parameter.detach().clone() for name, parameter in model.mop.named_parameters()}
    own = {id(parameter): dim for parameter, dim in model.mop.expert_parameters()}
    dims = {name: own[id(p)] for name, p in model.mop.named_parameters() if id(p) in own}
    assert dims
    mop_t5.add_scenario(model, "hotel")
    for name, parameter in model.mop.named_parameters():
        if name in dims:
            expected = torch.cat([old[name], old[name].mean(dims[name], keepdim=True)], dims[name])
            assert torch.equal(parameter, expected)
        else:
            assert torch.equal(parameter, old[name])
    mop_t5.add_scenario(model, "train", like="ticket")
    assert torch.equal(logits(model, "train"), logits(model, "ticket"))
    assert not torch.equal(logits(model, "train"), logits(model, "hotel"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_new_one_is_trained(kind):
    """With weight decay and momentum, from batches of all scenarios: not a bit of the others moves."""
    model = trained(kind)
    before = {name: logits(model, name) for name in NAMES}
    mop_t5.add_scenario(model, "hotel")
    shared = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert ("mop.input" in shared) != (kind == "X' and biases of an expert")
    assert all(
        "rule_out" not in n or kind == "without LoRL and LoRE" for n, p in model.named_parameters() if p.requires_grad
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    hold_absent_experts(optimizer, model.mop.expert_parameters())
    start = logits(model, "hotel")
    losses = [step(model, ["hotel", "taxi", "hotel", "food"], optimizer) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(logits(model, name), before[name]) for name in NAMES)
    assert not torch.equal(logits(model, "hotel"), start)
    assert all(p.grad is None for p in shared.values())
    for parameter, dim in model.mop.expert_parameters():
        assert (parameter.grad.narrow(dim, 0, 3) == 0).all()
        assert parameter.grad.narrow(dim, 3, 1).abs().sum() > 0 or parameter.dim() == 3  # a bias may be dead


def test_train_only_some_and_all_again():
    model = trained()
    mop_t5.add_scenario(model, "hotel")
    mop_t5.train_only(model, ["hotel", "taxi"])
    before = {name: logits(model, name) for name in mop_t5.scenarios(model)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, ["hotel", "taxi", "food", "ticket"], optimizer)
    changed = {name for name in before if not torch.equal(logits(model, name), before[name])}
    assert changed == {"hotel", "taxi"}
    mop_t5.remove_scenario(model, "ticket")  # what is trained is told by name, not by id
    before = {name: logits(model, name) for name in mop_t5.scenarios(model)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, ["hotel", "taxi", "food", "food"], optimizer)
    changed = {name for name in before if not torch.equal(logits(model, name), before[name])}
    assert changed == {"hotel", "taxi"}
    mop_t5.train_only(model, None)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith("mop.")
    }
    step(model, ["hotel", "taxi", "food", "food"], torch.optim.SGD(model.mop.parameters(), lr=0.1))
    assert all(p.grad.abs().sum() > 0 for p in model.mop.parameters())


def test_saved_and_loaded_while_the_new_one_is_trained(tmp_path):
    model = trained()
    mop_t5.add_scenario(model, "hôtel 酒店")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, ["hôtel 酒店"] * 4, optimizer)
    mop_t5.save(model, tmp_path)
    loaded = mop_t5.load(tiny(dtype=torch.float32), tmp_path)
    assert mop_t5.scenarios(loaded) == mop_t5.scenarios(model)
    assert all(torch.equal(logits(loaded, name), logits(model, name)) for name in model.scenarios)
    assert all(p.requires_grad for p in loaded.mop.parameters())
    mop_t5.remove_scenario(loaded, "ticket")
    mop_t5.save(loaded, tmp_path)
    again = mop_t5.load(tiny(dtype=torch.float32), tmp_path)
    assert mop_t5.scenarios(again) == ("taxi", "food", "hôtel 酒店")
    assert torch.equal(logits(again, "hôtel 酒店"), logits(model, "hôtel 酒店"))
    mop_t5.detach(again)
    with torch.no_grad():
        assert torch.equal(again(**batch()).logits, tiny(dtype=torch.float32)(**batch()).logits)


def test_a_copy_trains_the_same_scenario():
    model = trained()
    mop_t5.add_scenario(model, "hotel")
    other = copy.deepcopy(model)
    before = logits(other, "taxi")
    step(
        other,
        ["hotel", "taxi", "food", "food"],
        torch.optim.SGD([p for p in other.parameters() if p.requires_grad], 0.1),
    )
    assert torch.equal(logits(other, "taxi"), before)
    assert not torch.equal(logits(other, "hotel"), logits(model, "hotel"))


def test_generation_knows_the_new_one():
    model = trained(dtype=torch.float64)
    inputs = {name: tensor for name, tensor in batch().items() if name in ("input_ids", "attention_mask")}
    settings = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    before = model.generate(**inputs, scenario_ids=[0, 1, 2, 0], **settings)
    mop_t5.add_scenario(model, "hotel", like="food")
    assert torch.equal(model.generate(**inputs, scenario_ids=[0, 1, 2, 0], **settings), before)
    assert torch.equal(model.generate(**inputs, scenario_ids=[0, 1, 3, 0], **settings), before), (
        "the new one starts as a copy of food"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda model: mop_t5.add_scenario(model, "hotel"),
        lambda model: mop_t5.remove_scenario(model, "food"),
        lambda model: mop_t5.train_only(model, ["food"]),
    ],
)
@pytest.mark.parametrize("method", ["prefix_tuning", "mop"])
def test_methods_whose_scenarios_share_everything(method, change):
    own = {"prefix_tuning": {"scenarios": NAMES, "prefix_length": 3, "d_mid": 8}, "mop": {**FIELDS, "num_experts": 1}}
    model = mop_t5.attach(tiny(), method, **own[method])
    mop = model.mop
    with raises(ValueError, "scenarios", f"'{method}'", "share", "parameters"):
        change(model)
    assert model.mop is mop
    assert mop_t5.scenarios(model) == tuple(NAMES)
    assert all(p.requires_grad for p in model.mop.parameters())


def test_errors():
    model = trained()
    for change, error, message in (
        (
            lambda: mop_t5.add_scenario(model, "taxi"),
            ValueError,
            ("name 'taxi'", "already"),
        ),
        (lambda: mop_t5.add_scenario(model, 3), TypeError, ("name", "3")),
        (lambda: mop_t5.add_scenario(model, " "), ValueError, ("name", "text", "' '")),
        (lambda: mop_t5.add_scenario(model, "\ud800"), ValueError, ("name", "characters")),
        (
            lambda: mop_t5.add_scenario(model, "x", like="y"),
            ValueError,
            ("like 'y'", "taxi, ticket"),
        ),
        (lambda: mop_t5.add_scenario(model, "x", like=0), TypeError, ("like", "0")),
        (lambda: mop_t5.remove_scenario(model, "x"), ValueError, ("name 'x'", "expected")),
        (
            lambda: mop_t5.train_only(model, []),
            ValueError,
            ("names", "none"),
        ),
        (lambda: mop_t5.train_only(model, "taxi"), TypeError, ("names", "list", "'taxi'")),
        (lambda: mop_t5.train_only(model, ["x"]), ValueError, ("names 'x'", "expected")),
        (lambda: mop_t5.scenarios(tiny()), RuntimeError, ("model", "mop_t5.attach")),
    ):
        with raises(error, *message):
            change()
    assert mop_t5.scenarios(model) == tuple(NAMES)
    only = trained(scenarios=["taxi"])
    with raises(ValueError, "name 'taxi'", "last scenario", "Detach"):
        mop_t5.remove_scenario(only, "taxi")
    before = logits(only, "taxi")
    mop_t5.add_scenario(only, "hotel")  # one expert that was alone becomes one of two
    assert torch.equal(logits(only, "taxi"), before)


def test_trainer_moves_the_new_one_alone(tmp_path):
    """mop_t5.training.train on batches of all scenarios, with weight decay."""
    texts = [text for row in setting.CORPUS["general"] for text in (row.dialogue, row.summary)]
    model = setting.new_model(train_tokenizer(texts, 600), scenarios=["e-commerce", "food", "take-out", "ticket"])
    mop_t5.add_scenario(model, "taxi")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    changes = {"batching": "mixed", "weight_decay": 0.5, "learning_rate": 0.1, "save_every": 0}
    setting.run(model, train_tokenizer(texts, 600), tmp_path, **changes)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("local" in name for name in changed)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name][:, :4], before[name][:, :4]) for name in changed)
    assert all(not torch.equal(parameters[name][:, 4], before[name][:, 4]) for name in changed)
