"""task_moe in use: where it starts from, its training, a plain T5 of it, what it says of wrong fields."""

import json

import mop_t5
import pytest
import torch
from errors import raises
from method_cases import backbone, run
from method_cases import corpus as corpus
from mop_t5.cli.main import main
from mop_t5.methods.task_moe.config import TaskMoEConfig
from mop_t5.methods.task_moe.selection import entropy
from mop_t5.operations.run_folder import load_run, read_history
from mop_t5.storage import task_vectors
from t5_oracle import batch, tiny
from task_moe_cases import FIXED, ROUTES, SCENARIOS, SMALL, attached, logits

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
    with raises(ValueError, "routes_from", "router", "hotel"):
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
        ({"experts_from": folder, "experts": 2}, ("experts", "experts_from", "3", "2")),
        ({"experts_from": folder, "router": "lstm"}, ("router", "experts_from", "'linear_layer_specific'")),
        ({"routes_from": folder, "scenarios": ["hotel"]}, ("task_vectors", "file")),
        ({"task_vectors": vectors, "scenarios": ["hotel"], "d_task": 9}, ("d_task", "8", "9")),
    ):
        with raises(ValueError, *message):
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
    with raises(ValueError, "routers", "experts, router, task_vectors"):
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
        with raises(ValueError, "table of relative positions", "plain T5"):
            [mop_t5.squeeze(own, name) for name in SCENARIOS]
    with raises(ValueError, "model", "'task_moe'"):
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
        (ValueError, ("scenarios", "at least one"), {"scenarios": []}),
        (ValueError, ("experts", "1", "0"), {"experts": 0}),
        (ValueError, ("router", "'linear'"), {"router": "mlp"}),
        (
            ValueError,
            ("selection", "'softmax', 'gumbel', 'straight_through'", "'hard'"),
            {"selection": "hard"},
        ),
        (ValueError, ("routes", "'learned', 'average', 'instance'", "'random_N'", "1", "3"), {"routes": "random_4"}),
        (TypeError, ("encoder_layers", "list", "3"), {"encoder_layers": 3}),
        (ValueError, ("decoder_layers", "distinct", "[1, 1]"), {"decoder_layers": [1, 1]}),
        (ValueError, ("encoder_layers", "decoder_layers", "empty"), {"encoder_layers": [], "decoder_layers": []}),
        (ValueError, ("temperature", "0", "0"), {"temperature": 0}),
        (ValueError, ("noise", "0", "-1"), {"noise": -1}),
        (ValueError, ("expert_regulariser", "nan"), {"expert_regulariser": float("nan")}),
        (ValueError, ("expert_regulariser", "two experts"), {"expert_regulariser": 1.0, "experts": 1}),
        (ValueError, ("exploration", "0", "1", "1"), {"exploration": 1}),
        (ValueError, ("routes_from", "routes='learned'", "'average'"), {"routes": "average", "routes_from": "x"}),
        (ValueError, ("alternate", "router"), {"routes": "average", "alternate": True}),
        (TypeError, ("experts_from", "3"), {"experts_from": 3}),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        TaskMoEConfig(**{"scenarios": ["a"], **given})


def test_errors_that_need_the_backbone():
    for message, given in (
        (("decoder_layers", "0 to 2", "3"), {"decoder_layers": [3]}),
        (("own_tables", "all 3", "decoder"), {"own_tables": True, "decoder_layers": [0]}),
    ):
        with raises(ValueError, *message):
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
