"""MOP's ablations, K/V maps, scopes of X' and biases: against explicit Kronecker products, and their sizes."""

import itertools

import mop_t5
import pytest
import torch
from mop_lab.suites.systems import SYSTEMS
from mop_t5.attachment.additions import ATTENTIONS
from paper_sizes import ABLATIONS, BACKBONE, SIZES_OF_MOP
from t5_oracle import batch, tiny

SMALL = {"scenarios": ["a", "b", "c"], "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 2}
VARIANTS = {
    "MOP": {},
    "Reading B, rank 2": {"reading": "B", "rank": 2},
    "w/o low-rank": {"rule": "full"},
    "w/o low-rank, a rule a layer": {"rule": "full", "rule_scope": "layer"},
    "w/o both, full rank": {"rule": "full", "rule_scope": "layer_expert"},
    "w/o LoRL": {"share_lorl": False},
    "w/o LoRL, dropped": {"drop_lorl": True},
    "w/o LoRL, dropped, Reading B": {"drop_lorl": True, "reading": "B", "rank": 2},
    "w/o LoRE": {"share_lore": False},
    "w/o both": {"share_lorl": False, "share_lore": False},
    "dense experts": {"rule": "dense"},
    "one shared expert": {"num_experts": 1},
    "bias an expert": {"bias": "expert"},
    "bias a pair": {"bias": "layer_expert"},
    "no bias": {"bias": None},
    "X' of an expert": {"input_scope": "expert"},
    "joint": {"kv_maps": "joint", "terms_up": 4},
    "separate down": {"kv_maps": "separate_down"},
    "joint, dense, X' of an expert": {"kv_maps": "joint", "rule": "dense", "input_scope": "expert"},
    "two attentions": {"attention": ["encoder_self", "cross"], "layers": [1], "activation": "silu"},
}


def attached(**fields):
    """A tiny model with every parameter drawn: biases start at zero, where a mistake would not show."""
    torch.manual_seed(0)
    model = mop_t5.attach(tiny(), "mop", **{**SMALL, **fields})
    with torch.no_grad():
        for parameter in model.mop.parameters():
            parameter.normal_(std=0.7)
    return model


def pick(tensor, layer, expert):
    return tensor[layer if tensor.shape[0] > 1 else 0, expert if tensor.shape[1] > 1 else 0]


def dense_map(x, factors, config, layer, expert):
    """x W + b, W by the field's name and torch.kron."""
    local = pick(factors.local, layer, expert)
    if config.rule == "dense":
        (weight,) = local
    else:
        if config.rule == "full":
            rules = pick(factors.rule_in, layer, expert)
        else:
            right = pick(factors.rule_out, layer, expert)
            g_in = x.shape[-1] // local.shape[1]
            left = torch.ones(len(right), g_in, config.rank).to(x)
            rules = (left if config.drop_lorl else pick(factors.rule_in, layer, expert)) @ right
        weight = sum(torch.kron(rule, b) for rule, b in zip(rules, local, strict=True))
    y = x @ weight
    return y if factors.bias is None else y + pick(factors.bias, layer, expert)


def oracle(model, attention, layer):
    """Keys and values of one layer with experts, each (experts, heads, prefix, d_kv)."""
    mop, config = model.mop, model.mop.config
    at = mop.config.mop_layers(attention, mop.shape).index(layer)
    activation = {"relu": torch.relu, "silu": torch.nn.functional.silu}[config.activation]
    bank = mop.experts[attention]
    both = []
    for expert in range(config.experts):
        x = mop.input[expert] if config.input_scope == "expert" else mop.input
        rows = []
        for b in [bank, mop.value_experts[attention]] if config.kv_maps == "separate_down" else [bank]:
            hidden = activation(dense_map(x, b.down, config, at, expert))
            rows += [dense_map(hidden, up, config, at, expert) for up in b.ups]
        both.append(torch.cat(rows, dim=-1))  # keys, then values, however they are made
    both = torch.stack(both).reshape(config.experts, config.prefix_length, 2, 4, 8)
    return both.permute(2, 0, 3, 1, 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_explicit_kronecker_products(name):
    model = attached(**VARIANTS[name])
    mop = model.mop
    additions, results = mop.additions(), {True: 0, False: 0}
    generator = torch.Generator().manual_seed(1)
    for attention in mop.config.attention:
        for layer in mop.config.mop_layers(attention, mop.shape):
            expected, got = oracle(model, attention, layer), torch.stack(additions.prefix(attention, layer))
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
            weights = torch.randn(got.shape, generator=generator, dtype=got.dtype)
            for ours, rows in ((True, got), (False, expected)):
                results[ours] = results[ours] + (rows * weights).sum()
    names, parameters = zip(*((n, p) for n, p in mop.named_parameters() if not n.startswith("generators")), strict=True)
    gradients = [torch.autograd.grad(results[ours], parameters) for ours in (True, False)]
    for name, got, expected in zip(names, *gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        assert expected.any()


@pytest.mark.parametrize("name", VARIANTS)
def test_an_absent_expert_has_no_gradient(name):
    model, inputs = attached(**VARIANTS[name]), batch()
    own = dict(model.mop.expert_parameters())
    assert bool(own) != (name == "one shared expert")
    assert (model.mop.input in own) == (model.mop.config.input_scope == "expert")
    model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=[0, 2, 0, 0]).loss.backward()
    for parameter, dim in own.items():
        assert parameter.shape[dim] == 3
        assert not parameter.grad.select(dim, 1).any()
        assert parameter.grad.select(dim, 2).any() or parameter.dim() == 3  # a bias behind a dead unit
    for parameter in set(model.mop.experts.parameters()) - set(own):
        assert parameter.shape[1] == 1


def test_what_experts_share():
    """Of the ablations: which factors belong to single experts, and which of the rest to single layers."""

    def shapes(**fields):
        down = attached(**fields).mop.experts["decoder_self"].down
        return {n: tuple(p.shape[:2]) for n, p in down.named_parameters()}

    pair, layer, expert = (3, 3), (3, 1), (1, 3)
    mop = {"rule_in": expert, "rule_out": layer, "local": pair, "bias": layer}
    assert shapes() == mop
    assert shapes(share_lorl=False) == {**mop, "rule_in": pair}
    assert shapes(share_lore=False) == {**mop, "rule_out": pair}
    assert shapes(share_lorl=False, share_lore=False) == {**mop, "rule_in": pair, "rule_out": pair}
    assert shapes(drop_lorl=True) == {n: s for n, s in mop.items() if n != "rule_in"}
    assert shapes(rule="full") == {"rule_in": (1, 1), "local": pair, "bias": layer}
    assert shapes(rule="full", rule_scope="layer_expert") == {"rule_in": pair, "local": pair, "bias": layer}
    assert shapes(rule="dense") == {"local": pair, "bias": layer}
    assert shapes(num_experts=1) == dict.fromkeys(mop, layer) | {"rule_in": (1, 1)}


def test_joint_maps_are_the_separate_ones_side_by_side():
    """Of one term the joint up map is [W_K, W_V]."""
    separate, joint = attached(terms_up=1), attached(terms_up=1, kv_maps="joint")
    with torch.no_grad():
        joint.mop.input.copy_(separate.mop.input)
        theirs, ours = separate.mop.experts["decoder_self"], joint.mop.experts["decoder_self"]
        ours.down.load_state_dict(theirs.down.state_dict())
        for factors in (*ours.ups, *theirs.ups):
            for rule in (factors.rule_in, factors.rule_out):
                rule.fill_(1)
        for field in ("local", "bias"):
            both = torch.cat([getattr(up, field) for up in theirs.ups], dim=-1)
            getattr(ours.ups[0], field).copy_(both)
        got, expected = (m.mop.additions().prefix("decoder_self", 1) for m in (joint, separate))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_dropout_acts_on_experts_and_generators_in_training_only():
    mop = attached(dropout=0.5).mop
    for attention in ATTENTIONS:
        assert torch.equal(*(mop.eval().additions().prefix(attention, 0)[1] for _ in range(2)))
        first, second = (mop.train().additions().prefix(attention, 0)[1] for _ in range(2))
        assert not torch.equal(first, second)
        zeros = (first == 0).double().mean()
        assert 0.3 < zeros < 0.7


def test_activation_of_the_generators():
    torch.manual_seed(0)
    models = [attached(generator_activation=activation) for activation in ("tanh", "relu")]
    for model, function in zip(models, (torch.tanh, torch.relu), strict=True):
        generator = model.mop.generators["cross"]
        rows = generator.up(function(generator.down(generator.embedding)))
        got = model.mop.additions().prefix("cross", 0)[0][0]
        torch.testing.assert_close(got, rows[:, :32].reshape(5, 4, 8).transpose(0, 1))


# ---- sizes on T5-pegasus-base

PAPER = ["Taxi", "Ticket", "E-Commerce", "Take-out", "Food"]


@pytest.fixture(scope="module")
def pegasus():
    return mop_t5.build_backbone("t5-pegasus-base", device="meta")


def trained(model, **fields):
    count = mop_t5.count_parameters(mop_t5.attach(model, "mop", **{"scenarios": PAPER, **fields})).trained
    mop_t5.detach(model)
    return count


@pytest.mark.parametrize("sizes", SIZES_OF_MOP)
def test_percentages_of_both_readings(sizes, pegasus):
    reading, terms_down, terms_up = sizes
    of_mop, *percents = SIZES_OF_MOP[sizes]
    fields = {"reading": reading, "terms_down": terms_down, "terms_up": terms_up}
    assert trained(pegasus, **fields) == of_mop + 2 * 2_506_880
    for ablation, percent in zip(ABLATIONS, percents, strict=True):
        assert round(100 * trained(pegasus, **fields, **ablation) / BACKBONE, 4) == percent


@pytest.mark.parametrize(
    ("fields", "percent"),
    [
        ({"terms_down": 16, "terms_up": 8}, 2.5140),
        ({"terms_down": 16, "terms_up": 8, "kv_maps": "joint"}, 2.5136),
        ({"terms_down": 16, "terms_up": 8, "rank": 4, "bias": None}, 2.5138),
        ({"terms_down": 64, "terms_up": 8, "rank": 4, "kv_maps": "joint"}, 2.5139),
        ({"terms_down": 4, "terms_up": 32, "bias": "expert", "kv_maps": "joint"}, 2.5138),
        ({"terms_down": 32, "terms_up": 8, "rank": 4, "bias": "expert", "input_scope": "expert"}, 2.5135),
    ],
)
def test_the_configurations_that_fit_table_4(fields, percent, pegasus):
    assert round(100 * trained(pegasus, **fields) / BACKBONE, 4) == percent


def test_sizes_of_the_other_variants(pegasus):
    """From the preset by hand: pairs are 12 layers of 5 experts; biases 128 + 2*768 numbers."""
    paper = 6_914_176
    rules = (5 + 12) * 16 * 16, 2 * (5 + 12) * 8 * 8  # l and e, down and up
    locals_ = 60 * (768 * 128 // 16 + 2 * 128 * 768 // 8)
    biases = 128 + 2 * 768
    assert trained(pegasus) == paper
    assert trained(pegasus, rule="dense") == paper - sum(rules) - locals_ + 60 * 3 * 768 * 128
    assert trained(pegasus, drop_lorl=True) == paper - 5 * (16 * 16 + 2 * 8 * 8)
    assert trained(pegasus, rule="full", rule_scope="layer_expert") == paper - sum(rules) + 60 * (16**3 + 2 * 8**3)
    assert trained(pegasus, bias=None) == paper - 12 * biases
    assert trained(pegasus, bias="layer_expert") == paper + (60 - 12) * biases
    assert trained(pegasus, input_scope="expert") == paper + 4 * 40 * 768
    second_down = 17 * 16 * 16 + 60 * 768 * 128 // 16 + 12 * 128
    assert trained(pegasus, kv_maps="separate_down") == paper + second_down
    one = 13 * (16 * 16 + 2 * 8 * 8) + locals_ // 5 + 12 * biases + 40 * 768
    assert trained(pegasus, num_experts=1) == one + 2 * 2_506_880


def test_systems_are_the_rows_of_the_tables(pegasus):
    rows = {"MOP", "MOP w/o low-rank", "MOP w/o LoRL", "MOP w/o LoRE", "MOP w/o both"}
    assert rows <= set(SYSTEMS["mop"].fields)
    counts = {label: trained(pegasus, **fields) for label, fields in SYSTEMS["mop"].fields.items()}
    assert len(set(counts.values())) == len(counts)
    percents = [round(100 * counts[label] / BACKBONE, 4) for label in itertools.islice(SYSTEMS["mop"].fields, 5)]
    assert percents == [2.5140, 2.5135, 2.5217, 2.5207, 2.5284]
