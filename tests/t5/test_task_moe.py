"""Blocks that are experts: the equations, what runs, caches, randomness, starting points, training, a plain T5."""

import copy
import json
import pickle
from pathlib import Path

import mop_t5
import pytest
import torch
from mop_t5 import task_vectors
from mop_t5.cli import main
from mop_t5.expert_blocks import Mixture, mix
from mop_t5.methods.route_selection import entropy
from mop_t5.methods.task_moe import expert_distance
from mop_t5.methods.task_moe_config import TaskMoEConfig
from mop_t5.training import load_run, read_history
from safetensors.torch import load_file
from t5_oracle import attend, batch, feed_forward, norm, position_bias, tiny
from test_every_method import backbone, run
from test_every_method import corpus as corpus

SCENARIOS = ["taxi", "ticket", "food"]
IDS = torch.tensor([0, 2, 1, 2])
SMALL = {"scenarios": SCENARIOS, "d_task": 8, "hidden": 4}
FIXED = {"one": {"routes": "random_1"}, "two": {"routes": "random_2"}, "all": {"routes": "average"}}
ROUTES = FIXED | {
    "learned": {},
    "hard": {"selection": "straight_through"},
    "instance": {"routes": "instance"},
}
PLACES = {
    "everywhere": {},
    "own tables": {"own_tables": True},
    "decoder's own tables": {"own_tables": True, "encoder_layers": []},
    "some": {"encoder_layers": [1], "decoder_layers": [2, 0]},
}


def attached(fields, model=None, spread=0.1):
    """Not a trained one, but one whose experts and tables all differ."""
    torch.manual_seed(3)
    model = mop_t5.attach(tiny() if model is None else model, "task_moe", **SMALL | fields)
    with torch.no_grad():
        for parameter in model.mop.experts.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model(**(inputs or batch()), scenario_ids=ids).logits


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
    y = mix(experts(h), h, mixture.parts(("encoder", 0), None, len(h)))
    torch.testing.assert_close(y, golden["mix.y"], atol=1e-6, rtol=1e-5)
    (y * golden["mix.g"]).sum().backward()
    for tensor, name in ((h, "gh"), (w, "gw"), (weight, "block_gweight")):
        torch.testing.assert_close(tensor.grad, golden[f"mix.{name}"], atol=1e-5, rtol=1e-5)


def test_one_expert_of_each_row_and_not_of_the_first(golden):
    _, experts = of_golden(golden)
    h, best = golden["mix.h"], golden["mix.w"].argmax(-1)
    w = torch.nn.functional.one_hot(best, 3).float()
    mixture = Mixture({("encoder", 0): [None] * 3}, w[None], by_scenario=False, sparse=True)
    parts = mixture.parts(("encoder", 0), None, len(h))
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
    with pytest.raises(ValueError, match="past_key_values is a EncoderDecoderCache, in which experts have no place"):
        model.generate(**inputs, scenario_ids=IDS, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(RuntimeError, match="block 0 of the encoder was called without the weights of its experts"):
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
        ([(5, 0)], r"pairs \(layer below 5, expert below 3\); got \(5, 0\)"),
        ([(0, 0), (0, 1), (0, 2)], "all 3 of layer 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.mop.disable(wrong)
    with pytest.raises(ValueError, match="can be disabled where routes are learned; here they are 'average'"):
        attached(FIXED["all"]).mop.disable([(0, 0)])


# where it starts from


def test_the_second_stage_keeps_the_routes_and_resets_the_experts(tmp_path):
    first = attached({})
    with torch.no_grad():
        first.shared.weight.mul_(1.5)
    mop_t5.save(first, tmp_path / "first")
    torch.manual_seed(8)
    second = mop_t5.attach(tiny(), "task_moe", **SMALL, routes_from=str(tmp_path / "first"), preset="stage_two")
    torch.testing.assert_close(second.mop.route_weights(1.0), first.mop.route_weights(1.0), atol=1e-12, rtol=0)
    assert entropy(second.mop.route_weights()).min() > 1.098  # at 300 nearly average
    assert set(second.mop.parameter_groups()) == {"experts"}
    for one, block in zip(second.mop.experts[1], [second.encoder.block[1]] * 3, strict=True):
        torch.testing.assert_close(one.state_dict(), block.state_dict(), atol=1e-6, rtol=0)
    assert torch.equal(second.shared.weight, tiny().shared.weight)
    second.mop.after_step(60_000)
    assert second.mop.temperature.item() == 1.0
    mop_t5.save(second, tmp_path / "second")
    loaded = mop_t5.load(tiny(), tmp_path / "second")
    assert torch.equal(loaded.mop.route_weights(), second.mop.route_weights())
    third = mop_t5.attach(tiny(), "task_moe", **SMALL | {"scenarios": ["food"]}, routes_from=str(tmp_path / "second"))
    assert torch.equal(third.mop.logits()[:, 0], second.mop.logits()[:, 2])
    with pytest.raises(ValueError, match=r"has no router, .* and no route for hotel"):
        mop_t5.attach(tiny(), "task_moe", **SMALL | {"scenarios": ["hotel"]}, routes_from=str(tmp_path / "second"))


def test_an_unseen_task_by_its_vector(tmp_path):
    first = attached({})
    with torch.no_grad():
        first.shared.weight.mul_(1.5)
    folder, vectors = str(tmp_path / "first"), str(tmp_path / "vectors.safetensors")
    mop_t5.save(first, folder)
    # the vector of a known task under a new name must give its route
    task_vectors.write(vectors, ["hotel"], first.mop.task_vectors[1:2].detach(), {})
    start = {"experts_from": folder, "task_vectors": vectors}
    plain = tiny()
    unseen = mop_t5.attach(plain, "task_moe", **SMALL | {"scenarios": ["hotel", "food"]}, **start)
    close = {"atol": 1e-5, "rtol": 0}  # vectors are float32
    torch.testing.assert_close(logits(unseen, [0] * 4), logits(first, [1] * 4), **close)
    torch.testing.assert_close(logits(unseen, [1] * 4), logits(first, [2] * 4), atol=1e-11, rtol=0)
    frozen = mop_t5.attach(tiny(), "task_moe", **SMALL | {"scenarios": ["hotel"]}, routes_from=folder, **start)
    torch.testing.assert_close(logits(frozen, [0] * 4), logits(first, [1] * 4), **close)
    for routes in ("average", "random_1"):
        other = mop_t5.attach(
            tiny(), "task_moe", **SMALL | {"scenarios": ["hotel"]}, routes=routes, experts_from=folder
        )
        torch.testing.assert_close(other.mop.experts.state_dict(), first.mop.experts.state_dict(), atol=0, rtol=0)
    mop_t5.detach(unseen)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), tiny().parameters(), strict=True))
    for wrong, message in (
        ({"experts_from": folder, "experts": 2}, "experts must be that of experts_from .*, 3; got 2"),
        ({"experts_from": folder, "router": "lstm"}, "router must be that of experts_from .*, 'linear_layer_specific'"),
        ({"routes_from": folder, "scenarios": ["hotel"]}, "task_vectors must name a file, because none is saved for"),
        ({"task_vectors": vectors, "scenarios": ["hotel"], "d_task": 9}, "d_task must be the width of .*, 8; got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            mop_t5.attach(tiny(), "task_moe", **SMALL | wrong)


# training


def test_router_and_blocks_take_turns_and_rates(corpus, tmp_path):
    def trained(steps, **options):
        fields = {key: options.pop(key) for key in ("alternate",) if key in options}
        torch.manual_seed(0)
        model = mop_t5.attach(backbone(dtype=torch.float32, vocab_size=len(corpus[0])), "task_moe", **SMALL | fields)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        run(model, corpus, tmp_path / f"{steps}{len(options)}{len(fields)}", steps=steps, **options)
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        return {n.split(".")[1] if n.startswith("mop.") else "backbone" for n in changed}

    assert trained(1, alternate=True) == {"router", "task_vectors"}
    assert trained(2, alternate=True) == {"router", "task_vectors", "experts", "backbone"}
    assert trained(1, group_rates={"router": 0.0, "task_vectors": 0.0}) == {"experts", "backbone"}
    with pytest.raises(ValueError, match=r"names no such group: routers\. Groups: experts, router, task_vectors"):
        trained(1, group_rates={"routers": 2.0}, accumulation=1)


def test_experts_without_rows_keep_what_they_are(corpus, tmp_path):
    """No decay, no momentum."""
    model = attached(FIXED["one"], backbone(dtype=torch.float32, vocab_size=len(corpus[0])))
    before = [[[p.detach().clone() for p in e.parameters()] for e in experts] for experts in model.mop.experts]
    rows = [row for row in corpus[1] if row.scenario == SCENARIOS[0]]
    run(model, corpus, tmp_path, rows, steps=2, weight_decay=0.5)
    used = model.mop.route_weights()[:, 0].bool()
    for layer, experts in enumerate(model.mop.experts):
        for number, expert in enumerate(experts):
            same = all(torch.equal(p, q) for p, q in zip(expert.parameters(), before[layer][number], strict=True))
            assert same != used[layer, number]


def test_records_follow_the_run_and_its_resumption(corpus, tmp_path):
    fields = {"temperature": 4.0, "temperature_rate": 0.5, "minimum_temperature": 1.0}
    changes = {"batch_size": 2, "evaluate_every": 2, "max_target": 3}

    def go(name, steps, resume=False):
        torch.manual_seed(0)
        model = mop_t5.attach(backbone(dtype=torch.float32, vocab_size=len(corpus[0])), "task_moe", **SMALL | fields)
        run(model, corpus, tmp_path / name, steps=steps, resume=resume, **changes)
        return [json.loads(line) for line in (tmp_path / name / "routes.jsonl").read_text().splitlines()]

    straight = go("straight", 6)
    assert [record["step"] for record in straight] == [2, 4, 6]
    assert [record["temperature"] for record in straight] == pytest.approx([4 / 2.718281828, 1, 1], rel=1e-6)
    for record in straight:
        of = torch.tensor(record["routes_at_1"], dtype=torch.float64)
        assert of.shape == (4, 3, 3)
        assert record["entropy_at_1"] == pytest.approx(entropy(of).mean().item(), abs=1e-4)
        assert record["entropy"] >= record["entropy_at_1"]
    assert straight[0]["routes"] != straight[1]["routes"]
    go("cut", 4)
    with open(tmp_path / "cut" / "routes.jsonl", "a") as file:
        file.write('{"step": 6, "of": "a run that was killed"}\n{"step": ')
    assert go("cut", 6, resume=True) == straight
    model = attached(FIXED["one"], backbone(dtype=torch.float32, vocab_size=len(corpus[0])))
    run(model, corpus, tmp_path / "fixed", steps=3)
    (record,) = [json.loads(line) for line in (tmp_path / "fixed" / "routes.jsonl").read_text().splitlines()]
    assert (record["step"], record["entropy"], "routes_at_1" in record) == (3, 0.0, False)


def test_a_summed_loss_is_that_of_all_tokens(corpus, tmp_path):
    def first(loss, smoothing, accumulation):
        model = attached({}, backbone(dtype=torch.float32, vocab_size=len(corpus[0])))
        fields = {"accumulation": accumulation, "label_smoothing": smoothing, "max_grad_norm": 0.0}
        folder = tmp_path / f"{loss}{smoothing}{accumulation}"
        (point,) = [
            p for p in run(model, corpus, folder, steps=1, loss=loss, log_every=1, **fields).history if "loss" in p
        ]
        return point["loss"], point["grad_norm"]

    for smoothing, accumulation in ((0.0, 1), (0.1, 2)):
        (mean, small), (total, large) = (first(loss, smoothing, accumulation) for loss in ("mean", "sum"))
        tokens = total / mean
        assert tokens == pytest.approx(round(tokens), rel=1e-4)
        assert tokens > 8 * accumulation
        assert large / small == pytest.approx(tokens, rel=1e-3)


# a plain T5


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_squeezed_is_the_same_model(kind, tmp_path):
    model = attached(ROUTES["hard"], tiny(kind, num_decoder_layers=2))
    inputs = {name: tensor for name, tensor in batch().items() if name != "decoder_input_ids"}
    for number, name in enumerate(SCENARIOS):
        plain = mop_t5.squeeze(model, name)
        with torch.no_grad():
            assert torch.equal(plain(**batch()).logits, logits(model, [number] * 4))
        found = model.generate(**inputs, num_beams=3, scenario_ids=number)
        assert torch.equal(plain.generate(**inputs, num_beams=3), found)
    plain.save_pretrained(tmp_path)
    loaded = mop_t5.load_backbone(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), plain.parameters(), strict=True))
    assert sum(p.numel() for p in plain.parameters()) == mop_t5.count_parameters(model).backbone
    own = attached(ROUTES["hard"] | {"own_tables": True})
    if kind != "umt5":
        with pytest.raises(ValueError, match="each with a table of relative positions of its own, and a plain T5 has"):
            [mop_t5.squeeze(own, name) for name in SCENARIOS]
    with pytest.raises(ValueError, match="model must have the method 'task_moe' attached"):
        mop_t5.squeeze(tiny(), "taxi")


def test_the_command_squeezes_a_run(corpus, tmp_path, capsys):
    tokenizer, rows = corpus
    backbone(dtype=torch.float32, vocab_size=len(tokenizer), num_layers=2).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        lines = ({"scenario": r.scenario, "dialogue": r.dialogue, "summary": r.summary} for r in rows)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    where = ["--corpus", str(tmp_path / "data"), "--backbone", str(tmp_path / "backbone")]
    options = ["--options.routes", "random_1", "--options.experts", "2"]
    small = ["--steps", "2", "--batch_size", "2", "--max_target", "5", "--loss", "sum"]
    moe, plain = str(tmp_path / "moe"), str(tmp_path / "plain")
    assert main(["train", *where, "--method", "task_moe", "--output", moe, *options, *small]) == 0
    assert read_history(moe)
    assert main(["squeeze", "--run", moe, "--scenario", "taxi", "--output", plain]) == 0
    assert "parameters, of" in capsys.readouterr().out
    assert main(["evaluate", "--run", plain, "--corpus", str(tmp_path / "data")]) == 0
    (mixed, *_), (squeezed, *_) = load_run(moe), load_run(plain)
    taxi = mop_t5.scenario_ids(mixed, "taxi").item()
    with torch.no_grad():
        expected = squeezed(**batch()).logits
    assert torch.equal(logits(mixed, taxi), expected)
    assert not torch.equal(logits(mixed, (taxi + 1) % 3), expected)


# what it says of wrong fields


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, "scenarios must name at least one scenario", {"scenarios": []}),
        (ValueError, "experts must be at least 1; got 0", {"experts": 0}),
        (ValueError, "router must be one of 'linear'", {"router": "mlp"}),
        (
            ValueError,
            "selection must be one of 'softmax', 'gumbel', 'straight_through'; got 'hard'",
            {"selection": "hard"},
        ),
        (ValueError, "routes must be 'learned', 'average', 'instance' or 'random_N' .* 1 to 3", {"routes": "random_4"}),
        (TypeError, "encoder_layers must be a list of block indices or None; got 3", {"encoder_layers": 3}),
        (ValueError, r"decoder_layers must be distinct; got \[1, 1\]", {"decoder_layers": [1, 1]}),
        (ValueError, "both empty. Name a block", {"encoder_layers": [], "decoder_layers": []}),
        (ValueError, "temperature must be above 0 and finite; got 0", {"temperature": 0}),
        (ValueError, "noise must be at least 0 and finite; got -1", {"noise": -1}),
        (ValueError, "expert_regulariser must be finite; got nan", {"expert_regulariser": float("nan")}),
        (ValueError, "expert_regulariser needs two experts", {"expert_regulariser": 1.0, "experts": 1}),
        (ValueError, "exploration must be at least 0 and below 1; got 1", {"exploration": 1}),
        (ValueError, "routes_from needs routes='learned'; got 'average'", {"routes": "average", "routes_from": "x"}),
        (ValueError, "alternate needs a router that is trained", {"routes": "average", "alternate": True}),
        (TypeError, "experts_from must be a path or None; got 3", {"experts_from": 3}),
    ],
)
def test_config_errors(error, message, given):
    with pytest.raises(error, match=message):
        TaskMoEConfig(**{"scenarios": ["a"], **given})


def test_errors_that_need_the_backbone():
    for message, given in (
        (r"decoder_layers must lie in 0 to 2; got 3", {"decoder_layers": [3]}),
        (r"own_tables needs experts in all 3 blocks of the decoder", {"own_tables": True, "decoder_layers": [0]}),
    ):
        with pytest.raises(ValueError, match=message):
            mop_t5.attach(tiny(), "task_moe", **SMALL | given)


def test_parameters_counted_by_hand():
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    mop_t5.attach(model, "task_moe", scenarios=list("abcde"), router="linear")
    d, inner, ff, vocab, layers = 768, 768, 2048, 50000, 12
    attention, feed = 4 * d * inner + d, 3 * d * ff + d
    blocks = layers * (attention + feed) + layers * (2 * attention + feed)
    router = (d + 1) * 64 + 65 * 2 * layers * 3
    shared = 2 * vocab * d + 2 * d + 2 * 32 * 12
    assert mop_t5.count_parameters(model).trained == 3 * blocks + router + 5 * 768 + shared
