"""Blocks that are experts: the equations, the public code's numbers, what runs, caches, randomness."""

import copy
import pickle
from pathlib import Path

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.attachment.mixture import Mixture, mix
from mop_t5.methods.task_moe.selection import expert_distance
from safetensors.torch import load_file
from t5_oracle import attend, batch, feed_forward, norm, position_bias, tiny
from task_moe_cases import FIXED, IDS, ROUTES, SMALL, attached, logits

PLACES = {
    "everywhere": {},
    "own tables": {"own_tables": True},
    "decoder's own tables": {"own_tables": True, "encoder_layers": []},
    "some": {"encoder_layers": [1], "decoder_layers": [2, 0]},
    "encoder alone": {"decoder_layers": []},
}


# the equations, from scratch


def by_hand(model, inputs, weights):
    """Logits, weights (layers, batch, experts); the decoder over the encoder, block by block and expert by expert."""
    method = model.mop
    experts = dict(zip(method.expert_places, zip(method.experts, weights, strict=True), strict=True))
    own = method.config.own_tables

    def stack(name, ids, allowed, memory=None, memory_allowed=None):
        owner = getattr(model, name)
        x, n, biases = model.shared.weight[ids], ids.shape[1], None
        for layer, block in enumerate(owner.block):
            blocks, w = experts.get((name, layer), ([block], torch.ones(len(ids), 1)))
            with_table = blocks if own or model.config.model_type == "umt5" or blocks[0] is block else [block]
            if layer == 0 or model.config.model_type == "umt5":
                biases = [position_bias(b.layer[0].SelfAttention, owner.config, n, n) for b in with_table]
            total = 0
            for e, expert in enumerate(blocks):
                h, bias = norm(expert.layer[0].layer_norm, x), biases[e if len(biases) > 1 else 0]
                h = x + attend(expert.layer[0].SelfAttention, h, h, bias, allowed, None)
                if memory is not None:
                    normed = norm(expert.layer[1].layer_norm, h)
                    h = h + attend(expert.layer[1].EncDecAttention, normed, memory, 0, memory_allowed, None)
                total = total + w[:, e, None, None] * feed_forward(expert.layer[-1], h)
            x = total
        return norm(owner.final_layer_norm, x)

    seen = inputs["attention_mask"][:, None, None].bool()
    memory = stack("encoder", inputs["input_ids"], seen)
    n = inputs["decoder_input_ids"].shape[1]
    causal = torch.ones(n, n).tril().bool()[None, None]
    x = stack("decoder", inputs["decoder_input_ids"], causal, memory, seen)
    scaled = {"t5": getattr(model.config, "scale_decoder_outputs", False), "umt5": model.config.tie_word_embeddings}
    return model.lm_head(x * model.config.d_model**-0.5 if scaled.get(model.config.model_type) else x)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_outputs_and_gradients_are_those_of_the_equations(place, kind, implementation):
    model = attached(place, tiny(kind, implementation=implementation))
    vectors = model.mop.task_vectors
    weights = (model.mop.router(vectors) / 2.0).softmax(-1)[:, IDS]
    expected, got = by_hand(model, batch(), weights), model(**batch(), scenario_ids=IDS).logits
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=0)
    goal = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    of_model, by_equations = (
        torch.autograd.grad((y * goal).sum(), list(trained.values()), allow_unused=True) for y in (got, expected)
    )
    for name, mine, other in zip(trained, of_model, by_equations, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_any_routes_are_those_of_the_equations(routes):
    model = attached(routes)
    weights = model.mop.route_weights()
    assert torch.allclose(weights.sum(-1), torch.ones((), dtype=weights.dtype))
    torch.testing.assert_close(logits(model), by_hand(model, batch(), weights[:, IDS]).detach(), atol=1e-11, rtol=0)


def test_experts_start_as_their_block():
    plain = tiny()
    with torch.no_grad():
        expected = plain(**batch()).logits
    model = mop_t5.attach(plain, "task_moe", **SMALL)
    values = model.mop.experts[0][1].layer[0].SelfAttention.q.weight
    difference = (values - model.encoder.block[0].layer[0].SelfAttention.q.weight).detach()
    assert 0.5e-8 < difference.std() < 2e-8
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad and n[:3] != "mop"} == {
        "shared",
        "relative_attention_bias",
        "final_layer_norm",
    }
    alone = mop_t5.attach(tiny(), "task_moe", **SMALL, train_shared=False)
    assert all(n.startswith("mop.") for n, p in alone.named_parameters() if p.requires_grad)


# the public code's numbers


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(__file__).parents[1] / "golden" / "moe_selection_mixture.safetensors")


def of_golden(golden):
    """Its experts, tanh(h W^T + b) + h."""
    weight, bias = golden["mix.block_weight"].clone().requires_grad_(), golden["mix.block_bias"]
    return (
        weight,
        lambda h: (
            lambda e, rows: (
                torch.tanh((h if rows is None else h[rows]) @ weight[e].T + bias[e]) + (h if rows is None else h[rows])
            )
        ),
    )


def test_the_mixture_is_that_of_the_public_code(golden):
    weight, experts = of_golden(golden)
    h, w = (golden[f"mix.{name}"].clone().requires_grad_() for name in "hw")
    mixture = Mixture({("encoder", 0): [None] * 3}, w[None], by_scenario=False, sparse=False)
    y = mix(experts(h), h, mixture.parts(None, len(h))["encoder", 0])
    torch.testing.assert_close(y, golden["mix.y"], atol=1e-6, rtol=1e-5)
    (y * golden["mix.g"]).sum().backward()
    for tensor, name in ((h, "gh"), (w, "gw"), (weight, "block_gweight")):
        torch.testing.assert_close(tensor.grad, golden[f"mix.{name}"], atol=1e-5, rtol=1e-5)


def test_one_expert_of_each_row_and_not_of_the_first(golden):
    _, experts = of_golden(golden)
    h, best = golden["mix.h"], golden["mix.w"].argmax(-1)
    w = torch.nn.functional.one_hot(best, 3).float()
    mixture = Mixture({("encoder", 0): [None] * 3}, w[None], by_scenario=False, sparse=True)
    parts = mixture.parts(None, len(h))["encoder", 0]
    assert sum(len(h) if rows is None else len(rows) for _, rows, _ in parts) == len(h)
    y = mix(experts(h), h, parts)
    as_first = best == best[0]
    assert not as_first.all()
    torch.testing.assert_close(y[as_first], golden["mix.sparse_y"][as_first], atol=1e-6, rtol=1e-5)
    each = torch.stack([experts(h)(e, None) for e in range(3)])
    torch.testing.assert_close(y, each[best, torch.arange(len(h))].detach(), atol=1e-6, rtol=1e-5)


def test_the_regulariser_is_that_of_the_public_code(golden):
    experts = []
    for weight, bias in zip(golden["mix.block_weight"], golden["mix.block_bias"], strict=True):
        expert = torch.nn.Linear(6, 6)
        expert.load_state_dict({"weight": weight, "bias": bias})
        experts.append(expert)
    torch.testing.assert_close(expert_distance(experts), golden["mix.expert_reg"], atol=1e-5, rtol=1e-5)
    model = attached({"expert_regulariser": 0.5}).train()
    loss = model.mop.additions(IDS).loss
    assert loss.item() == pytest.approx(0.5 * sum(expert_distance(e).item() for e in model.mop.experts))
    assert model.eval().mop.additions(IDS).loss is None


# what runs, and the caches


def rows_run(model, call):
    """(stack, layer, expert) -> the numbers of rows of its calls."""
    seen, handles = {}, []
    for place, experts in zip(model.mop.expert_places, model.mop.experts, strict=True):
        for number, expert in enumerate(experts):
            handles.append(
                expert.layer[0].layer_norm.register_forward_pre_hook(
                    lambda module, args, key=(*place, number): seen.setdefault(key, []).append(len(args[0]))
                )
            )
    call()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("routes", "rows"), [("one", 4), ("two", 8), ("all", 12), ("learned", 12), ("hard", 4)])
def test_only_experts_with_weight_run_each_once(routes, rows):
    model = attached(ROUTES[routes])
    seen = rows_run(model, lambda: logits(model))
    assert all(len(calls) == 1 for calls in seen.values())
    for place in model.mop.expert_places:
        assert sum(calls[0] for (*at, _), calls in seen.items() if tuple(at) == place) == rows
    used = model.mop.route_weights()[:, IDS].ne(0)
    expected = {
        (*place, e): [int(used[layer, :, e].sum())]
        for layer, place in enumerate(model.mop.expert_places)
        for e in range(3)
        if used[layer, :, e].any()
    }
    assert seen == expected


def test_training_runs_what_gets_a_gradient():
    hard = attached(ROUTES["hard"]).train()
    inputs = batch() | {"labels": batch()["decoder_input_ids"]}
    seen = rows_run(hard, lambda: hard(**inputs, scenario_ids=IDS).loss.backward())
    assert {tuple(calls) for calls in seen.values()} == {(4,)}
    assert len(seen) == 3 * 5
    assert hard.mop.task_vectors.grad.abs().max() > 0
    one = attached(FIXED["one"]).train()
    assert not [n for n, _ in one.mop.named_parameters() if not n.startswith("experts.")]
    seen = rows_run(one, lambda: one(**inputs, scenario_ids=0).loss.backward())
    assert len(seen) == 5
    for place, experts in zip(one.mop.expert_places, one.mop.experts, strict=True):
        for number, expert in enumerate(experts):
            assert all((p.grad is not None) == ((*place, number) in seen) for p in expert.parameters())


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_beams_with_and_without_a_cache(routes, place, monkeypatch):
    model = attached(routes | place)
    inputs = {name: tensor for name, tensor in batch().items() if name != "decoder_input_ids"}
    search = {"num_beams": 3, "num_return_sequences": 2, "min_new_tokens": 6, "max_new_tokens": 6}
    made, rows = [], Mixture._rows
    monkeypatch.setattr(Mixture, "_rows", lambda self, ids, size: made.append(size) or rows(self, ids, size))
    mixed = model.generate(**inputs, **search, scenario_ids=IDS)
    assert made == ([12] if place.get("encoder_layers") == [] else [4, 12])  # once for the encoder, once for the beams
    assert torch.equal(model.generate(**inputs, **search, scenario_ids=IDS, use_cache=False), mixed)
    for scenario in range(3):
        here = scenario == IDS
        single = model.generate(**{k: v[here] for k, v in inputs.items()}, **search, scenario_ids=scenario)
        assert torch.equal(single, mixed[here.repeat_interleave(2)])


def test_a_step_at_a_time_is_the_whole():
    model = attached(FIXED["one"] | PLACES["some"])
    inputs = batch("none")
    whole, tokens, cache = logits(model, **inputs), inputs.pop("decoder_input_ids"), None
    for step in range(tokens.shape[1]):
        with torch.no_grad():
            out = model(**inputs, decoder_input_ids=tokens[:, step : step + 1], past_key_values=cache, scenario_ids=IDS)
        cache = out.past_key_values
        assert cache.get_seq_length() == step + 1
        torch.testing.assert_close(out.logits[:, 0], whole[:, step], atol=1e-11, rtol=0)
    cache.crop(-2)
    with torch.no_grad():
        again = model(**inputs, decoder_input_ids=tokens[:, 3:4], past_key_values=cache, scenario_ids=IDS)
    torch.testing.assert_close(again.logits[:, 0], whole[:, 3], atol=1e-11, rtol=0)


def test_caches_that_have_no_room_are_refused():
    model = attached({})
    inputs = {name: tensor for name, tensor in batch().items() if name != "decoder_input_ids"}
    with raises(ValueError, "EncoderDecoderCache", "experts", "cache_implementation"):
        model.generate(**inputs, scenario_ids=IDS, cache_implementation="static", max_new_tokens=2)
    with raises(RuntimeError, "block 0", "encoder", "experts", "mop_additions"):
        model.encoder(inputs["input_ids"])
    encoded = model.encoder(
        inputs["input_ids"], inputs["attention_mask"], mop_additions=model.mop.additions(), scenario_ids=IDS
    )
    ahead = model.generate(encoder_outputs=encoded, attention_mask=inputs["attention_mask"], scenario_ids=IDS)
    assert torch.equal(ahead, model.generate(**inputs, scenario_ids=IDS))


@pytest.mark.parametrize("routes", ["one", "two", "instance"])
def test_checkpointing_changes_nothing(routes):
    model, inputs = attached(ROUTES[routes]).train(), batch() | {"labels": batch()["decoder_input_ids"]}
    found = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(5)
        losses = [model(**inputs, scenario_ids=ids).loss for ids in (IDS, IDS.roll(1))]  # each has parts of its own
        seen = rows_run(model, sum(losses).backward)
        found.append([p.grad for p in model.parameters()])
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(len(calls) <= 2 for calls in seen.values())  # recomputed, once
    assert seen
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=1e-10)


def test_the_attention_of_experts_is_that_of_the_model(tmp_path):
    model = attached({})
    expected = logits(model)
    mop_t5.save(model, tmp_path)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), mop_t5.load(tiny(), tmp_path)):
        other.set_attn_implementation("eager")
        torch.testing.assert_close(logits(other), expected, atol=1e-12, rtol=0)
        for (stack, _), experts in zip(other.mop.expert_places, other.mop.experts, strict=True):
            config = getattr(other, stack).config
            assert all(expert.layer[0].SelfAttention.config is config for expert in experts)


def test_what_experts_share_is_stored_once(tmp_path):
    model = attached({})
    mop_t5.save(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    tables = {
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for stack in ("encoder", "decoder")
    }
    assert {name for name in saved if not name.startswith("mop.")} == tables | {
        "shared.weight",
        "encoder.final_layer_norm.weight",
        "decoder.final_layer_norm.weight",
    }
    assert not [name for name in saved if name.startswith("mop.experts") and "relative_attention_bias" in name]


# randomness


def weights(model, ids=IDS):
    """(layers, batch, experts) that the next forward pass would take."""
    mixture = model.mop.additions(ids).experts
    return mixture._rows(ids, len(ids))


def is_one_hot(of):
    return bool((of.eq(0) | of.eq(1)).all() and (of.sum(-1) == 1).all())


def test_gumbel_is_drawn_for_each_example_in_training_only():
    model = attached({"selection": "gumbel"})
    assert torch.equal(weights(model), weights(model))
    assert torch.equal(weights(model)[:, 1], weights(model)[:, 3])
    model.train()
    assert not torch.equal(weights(model), weights(model))
    assert (weights(model)[:, 1] != weights(model)[:, 3]).all()
    hard = attached(ROUTES["hard"]).train()
    assert is_one_hot(weights(hard))
    noisy = attached({"selection": "straight_through", "noise_in_evaluation": True})
    assert is_one_hot(weights(noisy))
    assert any(not torch.equal(weights(noisy), weights(noisy)) for _ in range(20))
    # a route is drawn once a generation, for an example and all its beams
    inputs = {name: tensor for name, tensor in batch().items() if name != "decoder_input_ids"}
    search = {"num_beams": 2, "max_new_tokens": 5, "mop_additions": noisy.mop.additions(IDS), "scenario_ids": IDS}
    assert torch.equal(noisy.generate(**inputs, **search), noisy.generate(**inputs, **search, use_cache=False))


def test_exploration_is_of_training_and_keeps_gradients():
    model = attached({"exploration": 0.5})
    before = weights(model)
    assert torch.equal(weights(model), before)
    model.train()
    torch.manual_seed(0)
    drawn = weights(model)
    same = (drawn == before).all(-1)
    assert 0 < same.sum() < same.numel()
    assert is_one_hot(drawn[~same])
    model(**batch(), labels=batch()["decoder_input_ids"], scenario_ids=IDS).loss.backward()
    assert model.mop.task_vectors.grad.abs().max() > 0


def test_a_random_expert_for_each_example():
    model = attached(ROUTES["instance"])
    assert torch.equal(weights(model), weights(model))
    assert (weights(model) == weights(model)[:, :1]).all()
    assert is_one_hot(weights(model))
    model.train()
    assert is_one_hot(weights(model))
    assert not torch.equal(weights(model), weights(model))
    assert not (weights(model) == weights(model)[:, :1]).all()


def test_disabled_experts_share_their_weight_out():
    model = attached({})
    before = model.mop.route_weights()
    model.mop.disable([(0, 1), (4, 0), (4, 2)])
    after = model.mop.route_weights()
    assert after[0, :, 1].eq(0).all()
    torch.testing.assert_close(after[0, :, 0] / after[0, :, 2], before[0, :, 0] / before[0, :, 2])
    assert torch.equal(after[1:4], before[1:4])
    assert after[4, :, 1].eq(1).all()
    seen = rows_run(model, lambda: logits(model))
    assert {("encoder", 0, 1), ("decoder", 2, 0), ("decoder", 2, 2)}.isdisjoint(seen)
    model.mop.disable([])
    assert torch.equal(model.mop.route_weights(), before)
    for wrong, message in (
        ([(5, 0)], ("pairs", "layer below 5, expert below 3", "(5, 0)")),
        ([(0, 0), (0, 1), (0, 2)], ("all 3", "layer 0")),
    ):
        with raises(ValueError, *message):
            model.mop.disable(wrong)
    with raises(ValueError, "disabled", "routes", "'average'"):
        attached(FIXED["all"]).mop.disable([(0, 0)])
