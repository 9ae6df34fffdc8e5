"""ATTEMPT: golden tensors of the public code, the equations by loops, what is trained, saved and handed on."""

import math
import shutil

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus, write_examples
from mop_t5.evaluation import generate_summaries
from mop_t5.methods.attempt import AttemptConfig
from mop_t5.storage import prompt_library
from mop_t5.training import TrainingConfig, train
from safetensors.torch import load_file
from t5_oracle import batch, tiny

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/attempt_sub.safetensors"
LENGTH = 4
TASKS = ["taxi", "ticket", "food"]
SMALL = {"untrained_sources": 3, "prompt_length": LENGTH, "bottleneck": 6}
SHARED = {**SMALL, "scenarios": TASKS}
IDS = torch.tensor([0, 2, 1, 2])
# every attention, with a target and, where something is left to train, without one
MODES = [(a, True) for a in ("sub", "token", "constant", "none")] + [("sub", False), ("token", False)]
of_every_mode = pytest.mark.parametrize(("attention", "use_target"), MODES)


def attached(fields=SHARED, model=None, seed=4, scale=1.0):
    """With random prompts and a G that is far from its start; temperature: so that the weights differ."""
    model = tiny() if model is None else model
    torch.manual_seed(seed)
    mop_t5.attach(model, "attempt", **{"temperature": 3.0, **fields})
    with torch.no_grad():
        for tensor in (*model.mop.parameters(), *model.mop.buffers()):
            tensor.copy_(torch.randn(tensor.shape, dtype=tensor.dtype) * scale)
    return model


@pytest.fixture
def library(tmp_path):
    """Folder of a library of the prompts mnli, qqp and squad."""
    for seed, name in enumerate(("squad", "mnli", "qqp")):
        torch.manual_seed(seed)
        mop_t5.save(mop_t5.attach(tiny(), "prompt_tuning", prefix_length=LENGTH), tmp_path / name)
        prompt_library.add(tmp_path / "library", name, tmp_path / name)
    return tmp_path / "library"


def from_library(folder, **fields):
    return {"library": str(folder), "source_prompts": ["mnli", "squad"], "prompt_length": LENGTH, **fields}


@pytest.mark.parametrize("tag", ["sub_single", "sub_multitask", "sub_sharedeval", "sub_notarget"])
def test_golden(tag):
    stored = {n.split(".", 1)[1]: t for n, t in load_file(GOLDEN).items() if n.startswith(f"{tag}.")}
    stored = {name: t.double() if t.is_floating_point() else t for name, t in stored.items()}
    fields = {"untrained_sources": 3, "prompt_length": 5, "pool_padding": True, "use_target": "target" in stored}
    tasks = 0 if "target" not in stored or stored["target"].dim() == 2 else len(stored["target"])
    model = mop_t5.attach(tiny(d_model=16), "attempt", scenarios=TASKS[:tasks], **fields)
    method = model.mop
    assert math.isclose(method.temperature, stored["T"].item(), rel_tol=1e-6), "d_model * e is the default"
    names = {
        "attention.down.weight": "attn_W_down.weight",
        "attention.up.weight": "attn_W_up.weight",
        "attention.norm.weight": "layer_norm.weight",
        "attention.norm.bias": "layer_norm.bias",
    }
    given = {ours: stored[f"param.{theirs}"] for ours, theirs in names.items()} | {"source_prompts": stored["source"]}
    if fields["use_target"]:
        names["target_prompts"] = "target"
        given["target_prompts"] = stored["target"].view(-1, 5, 16)
    method.load_state_dict(given)
    method.source_prompts.requires_grad_()
    names["source_prompts"] = "source"

    x = stored["x_embed"]
    if tag == "sub_sharedeval":
        stored["task_ids"] = torch.zeros(4, dtype=torch.int64)  # what the public code generates with
    prefixed = method.additions().prompt(x, stored["input_ids"] != 0, stored.get("task_ids"))
    assert torch.equal(prefixed[:, 5:], x)
    torch.testing.assert_close(prefixed[:, :5], stored["soft_prompt"], atol=1e-6, rtol=1e-6)
    (prefixed[:, :5] * stored["gout"]).sum().backward()
    tensors = dict(method.named_parameters()) | dict(method.named_buffers())
    assert set(tensors) == set(names)
    for ours, theirs in names.items():
        expected = stored[f"grad.{theirs}"].view_as(tensors[ours])
        torch.testing.assert_close(tensors[ours].grad, expected, atol=1e-6, rtol=2e-5)


def instance_prompt(method, x, mask, task):
    """P(X) (length, d) and the weights of one example x (source, d), from the equations, row by row."""
    config, sources = method.config, list(method.source_prompts)
    prompts = sources + ([method.target_prompts[task]] if config.use_target else [])
    counted = [row for row, counts in zip(x, mask, strict=True) if counts or config.pool_padding]
    if method.attention is None:
        t = len(sources)
        weights = torch.full((t + 1, LENGTH), 1 / (t + 1), dtype=x.dtype)
        if config.attention == "none":
            weights = torch.tensor([[1 / t] * LENGTH] * t + [[0.0] * LENGTH], dtype=x.dtype)
    else:
        g = method.attention
        pooled = torch.stack(counted).max(0).values if counted else torch.zeros_like(x[0])
        h = g.down.weight @ pooled
        h = g.up.weight @ (h / (1 + torch.exp(-h)))
        h = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt() * g.norm.weight + g.norm.bias
        if config.attention == "sub":
            scores = torch.stack([p.max(0).values @ h for p in prompts])[:, None].expand(-1, LENGTH)
        else:
            scores = torch.stack([p @ h for p in prompts])
        weights = torch.exp(scores / method.temperature)
        weights = weights / weights.sum(0)
    mixed = sum(w[:, None] * p for w, p in zip(weights, prompts, strict=True))
    return (mixed + prompts[-1] if config.use_target else mixed), weights


@of_every_mode
@pytest.mark.parametrize("pool_padding", [False, True])
def test_the_equations(attention, use_target, pool_padding):
    fields = {**SHARED, "attention": attention, "use_target": use_target, "pool_padding": pool_padding}
    model, inputs = attached(fields), batch()
    inputs["attention_mask"][3] = 0  # nothing counts in this one
    x, mask = model.shared(inputs["input_ids"]), inputs["attention_mask"]
    made = [instance_prompt(model.mop, *row) for row in zip(x, mask, IDS, strict=True)]
    expected = torch.stack([prompt for prompt, _ in made])
    weights = torch.stack([w if attention == "token" else w[:, 0] for _, w in made])
    prefixed = model.mop.additions().prompt(x, mask, IDS)
    torch.testing.assert_close(prefixed, torch.cat([expected, x], 1), atol=1e-12, rtol=1e-11)
    torch.testing.assert_close(model.mop.attention_of(x, mask, IDS), weights, atol=1e-13, rtol=1e-12)
    assert len(model.mop.candidates) == weights.shape[1]
    if model.mop.attention is not None:
        assert weights.std(1).min() > 0.01, "the prompts must differ in weight"
    gradient = torch.randn_like(expected)
    parameters = list(model.mop.parameters())
    expected = torch.autograd.grad((expected * gradient).sum(), parameters)
    got = torch.autograd.grad((prefixed[:, :LENGTH] * gradient).sum(), parameters)
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-10)


@of_every_mode
def test_the_model_runs_on_the_longer_text(attention, use_target):
    model, plain, inputs = attached({**SHARED, "attention": attention, "use_target": use_target}), tiny(), batch()
    x, mask = model.shared(inputs["input_ids"]), inputs["attention_mask"]
    with torch.no_grad():
        prompts = [instance_prompt(model.mop, *row)[0] for row in zip(x, mask, IDS, strict=True)]
        by_hand = {
            "inputs_embeds": torch.cat([torch.stack(prompts), x], 1),
            "attention_mask": torch.cat([torch.ones(4, LENGTH, dtype=mask.dtype), mask], 1),
            "decoder_input_ids": inputs["decoder_input_ids"],
        }
        expected, got = plain(**by_hand).logits, model(**inputs, scenario_ids=IDS).logits
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
        assert (got - plain(**inputs).logits).abs().max() > 1e-2, "the prompts must change what is computed"


def test_padding_changes_the_prompt_only_where_it_is_pooled():
    """Item 3 of the differences between paper and public code."""
    for pool_padding in (False, True):
        model, inputs = attached({**SHARED, "pool_padding": pool_padding}, scale=3), batch()
        other = inputs | {"input_ids": inputs["input_ids"].where(inputs["attention_mask"] == 1, 7)}
        with torch.no_grad():
            a, b = (model(**given, scenario_ids=IDS).logits for given in (inputs, other))
        assert torch.equal(a[0], b[0]), "this row has no padding"
        changed = (a - b)[1:3].abs().amax()
        assert changed > 1e-4 if pool_padding else changed < 1e-12


@pytest.mark.parametrize(
    ("scenarios", "fields", "trained"),
    [
        (1, {}, 231_936),
        (8, {}, 8 * 96_192),
        (0, {}, 231_936),
        (8, {"attention": "token"}, 8 * 96_192),
        (1, {"attention": "constant"}, 76_800),
        (1, {"attention": "none"}, 76_800),
        (8, {"use_target": False}, 155_136),
        (8, {"train_attention": False, "prior": "elsewhere"}, 8 * 76_800),
    ],
)
def test_parameter_counts_of_the_paper(scenarios, fields, trained):
    model = mop_t5.build_backbone("t5-base", device="meta")
    names = [f"task {i}" for i in range(scenarios)]
    sources = {"library": "anywhere", "source_prompts": ["MNLI", "QNLI", "QQP", "SST-2", "SQuAD", "ReCoRD"]}
    mop_t5.attach(model, "attempt", scenarios=names, **sources, **fields)
    counted = mop_t5.count_parameters(model)
    frozen = 6 * 76_800 + (0 if fields.get("train_attention", True) else 155_136)
    assert counted.trained == trained
    assert counted.total == counted.backbone + trained + frozen
    assert model.mop.source_prompts.shape == (6, 100, 768)


def test_sources_and_targets_start_from_the_library(library):
    stored = {name: prompt_library.read(library, name).prompt for name in ("mnli", "squad")}
    model = mop_t5.attach(tiny(), "attempt", scenarios=TASKS, **from_library(library))
    assert torch.equal(model.mop.source_prompts, torch.stack([stored["mnli"], stored["squad"]]))
    assert torch.equal(model.mop.target_prompts, stored["mnli"].expand(3, -1, -1)), "the first, as in the public code"
    assert model.mop.candidates == ("mnli", "squad", "target")
    model = mop_t5.attach(tiny(), "attempt", **from_library(library, init_source="squad"))
    assert torch.equal(model.mop.target_prompts, stored["squad"][None])
    one = mop_t5.attach(tiny(), "attempt", **from_library(library, source_prompts=["squad"]))  # ablation (c)
    assert one.mop.source_prompts.shape == (1, LENGTH, 24)


def test_other_starts_of_the_target():
    model = mop_t5.attach(tiny(), "attempt", **{**SHARED, "init": "vocabulary"})
    for prompt in (*model.mop.target_prompts, *model.mop.source_prompts):
        drawn = [(model.shared.weight == row).all(1).nonzero().item() for row in prompt]
        assert len(set(drawn)) == LENGTH
    assert len({tuple(p.flatten().tolist()) for p in model.mop.target_prompts}) == 3
    targets = mop_t5.attach(tiny(), "attempt", **{**SHARED, "init": "uniform"}).mop.target_prompts
    assert -0.5 <= targets.min() < -0.45
    assert 0.45 < targets.max() <= 0.5
    with raises(ValueError, "prompt_length", "40", "41"):
        mop_t5.attach(tiny(), "attempt", untrained_sources=1, prompt_length=41)


def test_a_start_of_g():
    g = mop_t5.attach(tiny(d_model=128), "attempt", untrained_sources=1, prompt_length=2).mop.attention
    assert 0.0097 < torch.cat([g.down.weight.flatten(), g.up.weight.flatten()]).std() < 0.0103
    assert g.norm.weight.eq(1).all()
    assert g.norm.bias.eq(0).all()


def test_sources_are_copied_and_loaded_bit_for_bit(library, tmp_path):
    model, inputs = mop_t5.attach(tiny(), "attempt", scenarios=TASKS, **from_library(library)), batch()
    sources = model.mop.source_prompts.clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=IDS).loss.backward()
        optimizer.step()
    assert torch.equal(model.mop.source_prompts, sources), "source prompts are frozen"
    with torch.no_grad():
        expected = model(**inputs, scenario_ids=IDS).logits
    mop_t5.save(model, tmp_path / "saved")
    shutil.rmtree(library)
    loaded = mop_t5.load(tiny(), tmp_path / "saved")
    state = model.mop.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.mop.state_dict().items())
    assert loaded.mop.attention.norm.bias.abs().max() > 0.05, "the LayerNorm of G is trained and saved"
    with torch.no_grad():
        assert torch.equal(loaded(**inputs, scenario_ids=IDS).logits, expected)
    with raises(NotADirectoryError, "library'", "folder"):
        mop_t5.attach(tiny(), "attempt", **from_library(library))


def test_a_library_that_does_not_fit(library):
    with raises(ValueError, "library'", "6 rows", "mnli", "4", "squad", "4"):
        mop_t5.attach(tiny(), "attempt", **from_library(library, prompt_length=6))
    with raises(ValueError, "prompt 'cola'", "mnli, qqp, squad"):
        mop_t5.attach(tiny(), "attempt", **from_library(library, source_prompts=["mnli", "cola"]))
    other = tiny(seed=1)
    with raises(ValueError, "mnli'", "another backbone"):
        mop_t5.attach(other, "attempt", **from_library(library))
    assert not mop_t5.is_attached(other)
    prompt_library.remove(library, "mnli")
    with raises(ValueError, "prompt 'mnli'", "qqp, squad"):
        mop_t5.attach(tiny(), "attempt", **from_library(library))


def test_a_prior_is_handed_on(library, tmp_path):
    first = attached({**SHARED, "scenarios": ["nli", "qa"]})
    mop_t5.save(first, tmp_path / "prior")
    fields = from_library(library, bottleneck=6, prior=str(tmp_path / "prior"))
    tuned = mop_t5.attach(tiny(), "attempt", scenarios=TASKS, **fields)
    fixed = mop_t5.attach(tiny(), "attempt", scenarios=["new"], **fields, train_attention=False)
    for model in (tuned, fixed):
        state = model.mop.attention.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.mop.attention.state_dict().items())
    assert len(list(tuned.mop.parameters())) == 5
    assert [name for name, _ in fixed.mop.named_parameters()] == ["target_prompts"]
    assert list(fixed.mop.parameter_groups()) == ["prompts"]

    inputs = batch()
    fixed(**inputs, labels=inputs["decoder_input_ids"]).loss.backward()
    assert fixed.mop.target_prompts.grad.any()
    mop_t5.save(fixed, tmp_path / "fixed")
    shutil.rmtree(tmp_path / "prior")
    loaded = mop_t5.load(tiny(), tmp_path / "fixed")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, fixed(**inputs).logits)
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == ["mop.target_prompts"]


def test_a_prior_that_does_not_fit(tmp_path):
    def attach(prior, backbone=None, **fields):
        given = {**SMALL, "prior": str(tmp_path / prior), **fields}
        mop_t5.attach(tiny() if backbone is None else backbone, "attempt", **given)

    mop_t5.save(attached(), tmp_path / "prior")
    mop_t5.save(attached({**SHARED, "attention": "constant"}), tmp_path / "constant")
    mop_t5.save(mop_t5.attach(tiny(), "prompt_tuning", prefix_length=3), tmp_path / "prompt")
    attach("prior", attention="token")
    with raises(ValueError, "bottleneck", "prior", "6", "8"):
        attach("prior", bottleneck=8)
    with raises(ValueError, "prior'", "another backbone"):
        attach("prior", tiny(seed=1))
    with raises(ValueError, "constant'", "G"):
        attach("constant")
    with raises(ValueError, "prompt'", "'prompt_tuning'", "'attempt'"):
        attach("prompt")
    with raises(FileNotFoundError, "nowhere'", "mop_config.json"):
        attach("nowhere")


@pytest.fixture(scope="module")
def corpus():
    rows = synthetic_corpus(2, general=60, train=60, valid=5, test=5)
    tokenizer = train_tokenizer([text for row in rows["general"] for text in (row.dialogue, row.summary)], 500)
    return tokenizer, [row for name in TASKS for row in [r for r in rows["train"] if r.scenario == name][:5]]


@of_every_mode
def test_trains_saves_loads_and_generates(attention, use_target, corpus, tmp_path):
    tokenizer, rows = corpus
    options = {"vocab_size": len(tokenizer), "dtype": torch.float32, "dropout_rate": 0.0}
    torch.manual_seed(3)
    fields = {**SHARED, "attention": attention, "use_target": use_target, "temperature": 20.0}
    model = mop_t5.attach(tiny(**options), "attempt", **fields)
    config = TrainingConfig(
        steps=30, batch_size=15, learning_rate=0.3, warmup_steps=0, max_source=40, max_target=20, log_every=1
    )
    result = train(model, tokenizer, rows, config, output=tmp_path / "run", progress=False)
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.05
    mop_t5.save(model, tmp_path / "saved")
    loaded = mop_t5.load(tiny(**options), tmp_path / "saved")
    lengths = {"max_source": 40, "max_new_tokens": 8, "num_beams": 2}
    mine, theirs = (generate_summaries(m, tokenizer, rows, **lengths) for m in (model, loaded))
    assert mine == theirs
    mop_t5.detach(model)
    assert type(model) is type(tiny())


def test_from_the_command_line(corpus, tmp_path, capsys):
    """Train source prompts, put them into a library, train and evaluate ATTEMPT on another task."""
    tokenizer, rows = corpus
    tiny(vocab_size=len(tokenizer), dtype=torch.float32).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    for split in ("train", "test"):
        write_examples(tmp_path / "corpus" / f"{split}.jsonl", rows)
    base = ["train", "--corpus", str(tmp_path / "corpus"), "--backbone", str(tmp_path / "backbone")]
    base += ["--steps", "2", "--batch_size", "4", "--max_target", "8", "--options.prompt_length", "4"]
    library = ["--library", str(tmp_path / "library")]
    for name in ("taxi", "ticket"):
        source = [word.replace("prompt_length", "prefix_length") for word in base]
        source += ["--method", "prompt_tuning", "--scenarios", f"[{name}]", "--output", str(tmp_path / name)]
        assert main(source) == 0
        assert main(["prompts", "add", *library, "--name", name, "--adapter", str(tmp_path / name / "adapter")]) == 0
    options = ["--options.library", str(tmp_path / "library"), "--options.source_prompts", "[ticket, taxi]"]
    run = [*base, "--method", "attempt", *options, "--group_rates", "{attention: 0.3}", "--scenarios", "[food]"]
    assert main([*run, "--output", str(tmp_path / "run")]) == 0
    shutil.rmtree(tmp_path / "library")
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--num_beams", "2"]) == 0
    assert "attempt" in capsys.readouterr().out
    loaded = mop_t5.load(mop_t5.load_backbone(tmp_path / "backbone"), tmp_path / "run" / "adapter")
    assert loaded.mop.candidates == ("ticket", "taxi", "target")
    assert loaded.scenarios == ("food",)


def test_validation_generates_with_the_task_of_each_row(corpus, tmp_path, monkeypatch):
    """Item 12 of the differences: in the public code every validation uses the prompt of task 0."""
    tokenizer, rows = corpus
    model = mop_t5.attach(tiny(vocab_size=len(tokenizer), dtype=torch.float32), "attempt", **SHARED)
    seen, mix = [], type(model.mop)._mix

    def recorded(method, embeddings, mask, scenario_ids):
        if not torch.is_grad_enabled():
            seen.extend(scenario_ids.tolist())
        return mix(method, embeddings, mask, scenario_ids)

    monkeypatch.setattr(type(model.mop), "_mix", recorded)
    lengths = {"max_source": 40, "max_target": 6}
    config = TrainingConfig(steps=1, batch_size=4, evaluate_every=1, **lengths)
    train(model, tokenizer, rows, config, output=tmp_path, valid=rows, progress=False)
    expected = [TASKS.index(row.scenario) for row in rows]
    # the validation's loss and its summaries, each for every row
    assert sorted(seen) == sorted(2 * expected)


def test_two_speeds(corpus, tmp_path):
    """By groups of the method; the public code's group of G is empty, and all of it is trained at one rate."""
    model = mop_t5.attach(tiny(vocab_size=len(corpus[0]), dtype=torch.float32), "attempt", **SHARED)
    groups = model.mop.parameter_groups()
    assert {name: len(parameters) for name, parameters in groups.items()} == {"prompts": 1, "attention": 4}
    before = {name: p.detach().clone() for name, p in model.mop.named_parameters()}
    config = TrainingConfig(
        steps=2, batch_size=4, group_rates={"attention": 0.0}, learning_rate=0.3, warmup_steps=0, max_source=40
    )
    train(model, corpus[0], corpus[1], config, output=tmp_path, progress=False)
    changed = {name for name, p in model.mop.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"target_prompts"}


def test_autocast_rounds_neither_text_nor_prompt():
    model, inputs = attached(SHARED, tiny(dtype=torch.float32)), batch()
    x = model.shared(inputs["input_ids"])
    expected = model.mop.additions().prompt(x, inputs["attention_mask"], IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model.mop.additions().prompt(x, inputs["attention_mask"], IDS)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("source_prompts", "library"), {"untrained_sources": 0}),
        (ValueError, ("source_prompts", "untrained_sources", "['a']"), {"source_prompts": ["a"]}),
        (ValueError, ("library", "source_prompts", "None"), {"source_prompts": ["a"], "untrained_sources": 0}),
        (ValueError, ("library", "source_prompts", "'x'"), {"library": "x"}),
        (TypeError, ("library", "3"), {"library": 3}),
        (TypeError, ("source_prompts", "list", "'a'"), {"source_prompts": "a"}),
        (ValueError, ("source_prompts", "distinct", "got a"), {"source_prompts": ["a", "a"]}),
        (ValueError, ("untrained_sources", "0", "-1"), {"untrained_sources": -1}),
        (ValueError, ("prompt_length", "1", "0"), {"prompt_length": 0}),
        (ValueError, ("attention", "'sub'", "'none'", "'dot'"), {"attention": "dot"}),
        (TypeError, ("use_target", "1"), {"use_target": 1}),
        (TypeError, ("pool_padding", "'no'"), {"pool_padding": "no"}),
        (ValueError, ("temperature", "0", "0"), {"temperature": 0}),
        (ValueError, ("bottleneck", "1", "0"), {"bottleneck": 0}),
        (ValueError, ("init", "'source', 'vocabulary', 'uniform'", "'b'"), {"init": "b"}),
        (ValueError, ("init_source", "source_prompts ()", "'b'"), {"init_source": "b"}),
        (ValueError, ("prior", "G", "attention='none'"), {"prior": "p", "attention": "none"}),
        (ValueError, ("train_attention=False", "G"), {"train_attention": False}),
        (
            ValueError,
            ("use_target=False", "G"),
            {"use_target": False, "attention": "constant"},
        ),
        (
            ValueError,
            ("use_target=False", "G"),
            {"use_target": False, "train_attention": False, "prior": "p"},
        ),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        AttemptConfig(**{**SMALL, **given})
