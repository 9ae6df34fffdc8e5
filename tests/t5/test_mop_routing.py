"""routing="xmoe_top2": the gates, the mixture, residual and LayerNorm against plain loops; counts; what it promises."""

import math

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.methods.mop.method import MOPConfig
from mop_t5.methods.mop.routing import Top2Gate
from t5_oracle import batch, tiny

SQUARE = {"d_model": 24, "d_kv": 6, "num_heads": 4}  # X' is added to keys and values, so heads*d_kv is d_model
SMALL = {"routing": "xmoe_top2", "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 2, "num_experts": 4}
ATTENTIONS = ("encoder_self", "decoder_self", "cross")


def attached(**fields):
    """A tiny model with every parameter drawn, so that nothing hides behind a start at zero."""
    torch.manual_seed(0)
    model = mop_t5.attach(tiny(**SQUARE), "mop", **{**SMALL, **fields})
    with torch.no_grad():
        for name, parameter in model.mop.named_parameters():
            if "centroids" not in name:
                parameter.normal_(std=0.5)
    return model


def kron_sum(factors, layer, expert):
    """The dense W of one pair."""
    rule_in, rule_out, local = factors.rule_in[0, expert], factors.rule_out[layer, 0], factors.local[layer, expert]
    return sum(torch.kron(rule_in[i] @ rule_out[i], local[i]) for i in range(len(local)))


def oracle_row(bank, layer, expert, x):
    """What one expert makes of one row: key and value."""
    hidden = torch.relu(x @ kron_sum(bank.down, layer, expert) + bank.down.bias[layer, expert])
    return [hidden @ kron_sum(up, layer, expert) + up.bias[layer, expert] for up in bank.ups]


def oracle_gate(gate, layer, x):
    """Probabilities of the experts for one row."""
    projected = x @ gate.projection[layer]
    logits = [projected @ c / c.square().sum().sqrt() for c in gate.centroids[layer]]
    exponentials = [torch.exp(logit) for logit in logits]
    return [e / sum(exponentials) for e in exponentials]


def layer_norm(row, norm):
    centred = row - row.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def oracle(model):
    """{attention: one (keys, values) a layer, each (heads, prefix, d_kv)} in evaluation, and the balance loss."""
    mop, heads, d_kv = model.mop, model.config.num_heads, model.config.d_kv
    prefixes, balance = {}, 0
    for attention in ATTENTIONS:
        layers = model.config.num_layers if attention == "encoder_self" else model.config.num_decoder_layers
        routed = mop.config.mop_layers(attention, mop.shape)
        generator = dict(mop.generators).get(attention)
        prefixes[attention], plain = [], 0
        for layer in range(layers):
            rows = mop.input if routed else generator.embedding
            made = []
            if layer in routed:
                gate, at = mop.gates[attention], routed.index(layer)
                probabilities = [oracle_gate(gate, at, x) for x in rows]
                for x, p in zip(rows, probabilities, strict=True):
                    first, second = sorted(range(len(p)), key=lambda e: -p[e])[:2]
                    parts = {e: oracle_row(mop.experts[attention], at, e, x) for e in (first, second)}
                    made.append(
                        [
                            (p[first] * parts[first][kv] + p[second] * parts[second][kv]) / (p[first] + p[second])
                            for kv in range(2)
                        ]
                    )
                experts = len(probabilities[0])
                for e in range(experts):
                    mean = sum(p[e] for p in probabilities) / len(rows)
                    share = sum(max(p) == p[e] for p in probabilities) / len(rows)
                    balance = balance + experts**2 * mean * share / experts
            else:
                for x in rows:
                    hidden = torch.relu(generator.down.weight @ x + generator.down.bias)
                    out = (generator.up.weight @ hidden + generator.up.bias).reshape(-1, 2, heads * d_kv)
                    made.append(list(out[plain]))
                plain += 1
            norm = mop.norms[attention].norm
            prefixes[attention].append(
                [
                    torch.stack(
                        [
                            torch.stack([layer_norm(head, norm) for head in (row[kv] + x).reshape(heads, d_kv)])
                            for row, x in zip(made, rows, strict=True)
                        ],
                        dim=1,
                    )
                    for kv in range(2)
                ]
            )
    return prefixes, balance


def gradients(model, prefixes, extra=0):
    """Of a fixed weighting of all prefixes, in every parameter."""
    generator, total = torch.Generator().manual_seed(3), extra
    for attention in ATTENTIONS:
        for pair in prefixes[attention]:
            for rows in pair:
                rows = rows.reshape(4, 5, 6)
                total = total + (rows * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)).sum()
    names = [name for name, _ in model.mop.named_parameters()]
    return dict(zip(names, torch.autograd.grad(total, list(model.mop.parameters()), allow_unused=True), strict=True))


def assert_equal_to_oracle(model):
    additions, (expected, balance) = model.mop.additions(), oracle(model)
    for attention in ATTENTIONS:
        for layer, pair in enumerate(expected[attention]):
            for got, rows in zip(additions.prefix(attention, layer), pair, strict=True):
                torch.testing.assert_close(got, rows[None], rtol=1e-10, atol=1e-10)
    if model.training:
        torch.testing.assert_close(additions.loss, 2 * balance, rtol=1e-10, atol=1e-10)
    else:
        assert additions.loss is None
    extras = (additions.loss, 2 * balance) if model.training else (0, 0)
    got = gradients(model, additions.prefixes, extras[0])
    for name, gradient in gradients(model, expected, extras[1]).items():
        if gradient is None:  # the oracle never touches what its rows do not use
            assert not got[name].any()
            continue
        torch.testing.assert_close(got[name], gradient, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention": ATTENTIONS},
        {"attention": ["encoder_self"], "num_experts": 3},
        {"attention": ["cross", "decoder_self"], "layers": [1]},
        {"layers": [0, 1, 2], "num_experts": 7},
    ],
)
def test_equal_to_plain_loops(fields):
    model = attached(**fields)
    assert_equal_to_oracle(model)


def test_equal_to_plain_loops_in_training():
    """Of two experts both are taken, so that nothing is drawn; with the balance loss."""
    model = attached(num_experts=2)
    model.mop.train()
    model.training = True
    assert_equal_to_oracle(model)


def test_weights_of_the_gate_in_training_and_evaluation():
    torch.manual_seed(0)
    gate, rows = Top2Gate(3, 5, 24, dtype=torch.float64), torch.randn(50, 24, dtype=torch.float64)
    for mode in (True, False):
        weights, _ = gate.train(mode)(rows)
        _, p = gate.probabilities(rows)
        assert weights.shape == (3, 50, 5)
        assert ((weights > 0).sum(-1) == 2).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 50, dtype=torch.float64))
        assert (weights.argmax(-1) == p.argmax(-1)).all()
        second = weights.scatter(-1, weights.argmax(-1, keepdim=True), 0).argmax(-1)
        is_best = second == p.scatter(-1, p.argmax(-1, keepdim=True), 0).argmax(-1)
        assert is_best.all() != mode
        # renormalised over the two
        torch.testing.assert_close(weights, p * (weights > 0) / (p * (weights > 0)).sum(-1, keepdim=True))


def test_second_expert_is_drawn_by_its_probability():
    torch.manual_seed(0)
    gate = Top2Gate(1, 4, 24)
    row = torch.randn(24)
    draws = 20_000
    weights, _ = gate(row.expand(draws, 24))
    p = gate.probabilities(row[None])[1][0, 0].detach()
    first = int(p.argmax())
    assert (weights[0, :, first] > 0).all()
    for expert in range(4):
        if expert != first:
            expected = float(p[expert] / (1 - p[first]))
            drawn = float((weights[0, :, expert] > 0).float().mean())
            assert abs(drawn - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)
    assert 0.05 < float(p.min() / (1 - p[first])) < 0.32  # else the draw above would say little


def test_gate_starts_orthogonal_at_norm_one_and_a_half():
    torch.manual_seed(0)
    gate = Top2Gate(6, 8, 768)
    torch.testing.assert_close(gate.centroids.norm(dim=-1), torch.full((6, 8), 1.5))
    assert (gate.centroids[0] - gate.centroids[1]).abs().max() > 0.1
    few = Top2Gate(1, 3, 16).centroids[0]
    torch.testing.assert_close(few @ few.T, 2.25 * torch.eye(3), atol=1e-5, rtol=0)
    bound = 768**-0.5
    assert 0.95 * bound < gate.projection.abs().max() < bound


def test_length_of_a_centroid_changes_neither_values_nor_gradients():
    torch.manual_seed(0)
    gate, rows = Top2Gate(2, 4, 24, dtype=torch.float64).eval(), torch.randn(9, 24, dtype=torch.float64)
    results = []
    for scale in (1, 0.3, 5):
        with torch.no_grad():
            gate.centroids.copy_(scale * 1.5 * torch.nn.functional.normalize(gate.centroids, dim=-1))
        weights, balance = gate(rows)
        (gradient,) = torch.autograd.grad((weights * torch.arange(4)).sum() + balance, [gate.centroids])
        assert gradient.abs().max() > 1e-3
        results.append((weights, balance, gradient))
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, expected)


def test_even_load_is_the_least_balance_loss():
    gate, rows = Top2Gate(1, 4, 4).eval(), 6 * torch.eye(4)
    with torch.no_grad():
        gate.projection.copy_(torch.eye(4))
        gate.centroids.copy_(1.5 * torch.eye(4))
    torch.testing.assert_close(gate(rows)[1], torch.tensor(1.0))
    p = math.exp(6) / (math.exp(6) + 3)
    torch.testing.assert_close(gate(rows[:1].expand(4, 4))[1], torch.tensor(4 * p))


def count(parameters):
    return sum(p.numel() for p in parameters)


SCENARIOS = ["Taxi", "Ticket", "E-Commerce", "Take-out", "Food"]


@pytest.mark.parametrize("fields", [{"preset": "xmoe_top2"}, {"routing": "xmoe_top2"}])
def test_counts_of_the_preset(fields):
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    mop = mop_t5.attach(model, "mop", scenarios=SCENARIOS, **fields).mop
    bank = mop.experts["decoder_self"]
    factors = [bank.down, *bank.ups]
    parts = {
        "gates": count(mop.gates["decoder_self"].parameters()),
        "rules": count(p for f in factors for p in (f.rule_in, f.rule_out)),
        "locals": count(f.local for f in factors),
        "biases": count(f.bias for f in factors),
        "mlp": count(mop.generators["decoder_self"].parameters()),
        "X'": mop.input.numel(),
        "norm": count(mop.norms["decoder_self"].parameters()),
    }
    assert parts == {
        "gates": 18_624,
        "rules": 43_008,
        "locals": 442_368,
        "biases": 79_872,
        "mlp": 1_287_296,
        "X'": 30_720,
        "norm": 128,
    }
    assert sum(parts.values()) == 1_902_016
    for attention in ("encoder_self", "cross"):
        own = [*mop.generators[attention].parameters(), *mop.norms[attention].parameters()]
        assert count(own) == 2_507_008
    counted = mop_t5.count_parameters(model)
    assert counted.trained == 6_916_032
    assert math.floor(1e5 * counted.share) == 2514
    assert mop.config.mop_layers("decoder_self", mop.shape) == (6, 7, 8, 9, 10, 11)


def test_count_with_an_expert_a_scenario():
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    mop_t5.attach(model, "mop", scenarios=SCENARIOS, preset="xmoe_top2", num_experts=5)
    counted = mop_t5.count_parameters(model)
    assert (counted.trained, round(100 * counted.share, 3)) == (6_710_904, 2.440)


def test_preset_starts_with_experts_that_add_nothing():
    torch.manual_seed(0)
    mop = mop_t5.attach(tiny(**SQUARE), "mop", **SMALL).mop
    rows = torch.nn.functional.layer_norm(mop.input.reshape(5, 4, 6), [6]).transpose(0, 1)
    for layer in (1, 2):
        for generated in mop.additions().prefix("decoder_self", layer):
            torch.testing.assert_close(generated[0], rows)
    assert (mop.additions().prefix("decoder_self", 0)[0][0] - rows).abs().max() > 0.1


def test_routing_fills_in_the_preset_and_given_fields_win():
    config = MOPConfig(routing="xmoe_top2")
    assert config == MOPConfig(routing="xmoe_top2", terms_down=32, terms_up=32, num_experts=8, init="zero_up")
    assert MOPConfig(routing="xmoe_top2", terms_up=4, num_experts=3).terms_up == 4
    other = MOPConfig(routing="xmoe_top2", preset="paper")  # its sizes and start, with gates
    assert (other.terms_down, other.terms_up, other.init, other.num_experts) == (16, 8, "variance_matched", 8)
    again = MOPConfig(**config.to_dict())
    assert again == config


def test_scenarios_do_not_matter():
    model, inputs = attached(scenarios=["a", "b", "c"]), batch()
    assert not model.mop.distinguishes_scenarios
    assert list(model.mop.expert_parameters()) == []
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs, scenario_ids=[0, 2, 1, 0]).logits)
    with raises(ValueError, "scenarios", "share", "parameters"):
        mop_t5.add_scenario(model, "d")


def test_groups_hold_every_parameter_once():
    model = attached(scenarios=["a", "b"])
    groups = model.mop.parameter_groups()
    assert sorted(id(p) for g in groups.values() for p in g) == sorted(id(p) for p in model.mop.parameters())
    assert {id(p) for p in model.mop.gates.parameters()} <= {id(p) for p in groups["shared"]}
    assert id(model.mop.experts["decoder_self"].down.local) in {id(p) for p in groups["experts"]}


def test_balance_loss_counts_in_training_only():
    model, inputs = attached(balance_weight=3.0), batch()
    labels = inputs.pop("decoder_input_ids")
    assert model(**inputs, labels=labels).loss < 20
    model.train()
    additions = model.mop.additions()
    assert additions.loss > 3  # three times a loss that is about one a layer, of two
    out = model(**inputs, labels=labels, mop_additions=additions)
    cross_entropy = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, cross_entropy + additions.loss)
    assert attached(balance_weight=0.0).mop.train().additions().loss == 0


def test_dropout_acts_on_the_sum_before_the_layer_norm():
    mop = attached(dropout=0.5, num_experts=2).mop.train()
    norm = mop.norms["cross"]
    ones = torch.ones(1, 4, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        norm.norm.weight.fill_(1)
        norm.norm.bias.zero_()
    means = norm(ones + torch.randn_like(ones), torch.zeros(5, 24, dtype=torch.float64)).mean(-1)
    torch.testing.assert_close(means, torch.zeros_like(means))
    rows = torch.randn(5, 24, dtype=torch.float64)
    assert not torch.equal(norm(0 * ones, rows), norm(0 * ones, rows))
    for attention in ATTENTIONS:
        first, second = (mop.additions().prefix(attention, 1)[0] for _ in range(2))
        assert not torch.equal(first, second)
    first, second = (mop.eval().additions().prefix("cross", 1)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_trains_saves_and_loads(tmp_path):
    model = attached(scenarios=["a", "b"]).train()
    inputs = batch()
    labels = inputs.pop("decoder_input_ids")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)

    def loss():
        with torch.no_grad():
            return model.eval()(**inputs, labels=labels).loss

    before = loss()
    for _ in range(10):
        optimizer.zero_grad()
        model.train()(**inputs, labels=labels).loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
    assert loss() < before - 0.1
    mop_t5.save(model, tmp_path)
    again = mop_t5.load(tiny(**SQUARE), tmp_path)
    assert again.mop.config == model.mop.config
    with torch.no_grad():
        assert torch.equal(again(**inputs, labels=labels).logits, model(**inputs, labels=labels).logits)
    assert torch.equal(
        again.generate(**inputs, num_beams=2, max_new_tokens=4), model.generate(**inputs, num_beams=2, max_new_tokens=4)
    )


def test_training_compiles_in_one_graph():
    mop = attached(num_experts=2).mop.train()

    def run():
        additions = mop.additions()
        return additions.prefixes, additions.loss

    prefixes, loss = torch.compile(run, backend="aot_eager", fullgraph=True)()
    expected = mop.additions()
    for attention in ATTENTIONS:
        for pair, own in zip(prefixes[attention], expected.prefixes[attention], strict=True):
            torch.testing.assert_close(pair, own)
    torch.testing.assert_close(loss, expected.loss)


def test_gates_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    gate, rows = Top2Gate(2, 8, 64).eval(), torch.randn(200, 64)
    expected, _ = gate(rows)
    with torch.autocast("cpu", torch.bfloat16):
        weights, balance = gate(rows)
    assert balance.dtype == torch.float32
    assert torch.equal(weights, expected)


def test_no_prefix_rows_is_the_plain_model():
    model, inputs = tiny(**SQUARE), batch()
    with torch.no_grad():
        plain = model(**inputs).logits
        mop_t5.attach(model, "mop", **{**SMALL, "prefix_length": 0})
        assert torch.equal(model(**inputs).logits, plain)
    assert model.mop.train().additions().loss == 0


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("num_experts", "2", "1"), {"num_experts": 1}),
        (ValueError, ("input_scope", "'shared'", "routing='xmoe_top2'", "'expert'"), {"input_scope": "expert"}),
        (ValueError, ("balance_weight", "0", "-1"), {"balance_weight": -1}),
        (ValueError, ("balance_weight", "nan"), {"balance_weight": float("nan")}),
        (TypeError, ("balance_weight", "True"), {"balance_weight": True}),
        (ValueError, ("dropout", "0", "1", "1"), {"dropout": 1}),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        MOPConfig(routing="xmoe_top2", **given)


def test_residual_needs_equal_widths():
    with raises(ValueError, "num_heads*d_kv", "d_model = 24", "32", "routing='scenario'"):
        mop_t5.attach(tiny(), "mop", **SMALL)
