"""What every registered method and every system of the tables must do: train, save, load, generate, leave no trace."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import mop_t5
import pytest
import torch
from errors import raises
from method_cases import SCENARIOS, SMALL, backbone, run
from method_cases import corpus as corpus
from mop_lab.suites.systems import all_systems
from mop_t5.data import Collator, EncodedExamples
from mop_t5.methods import method_names
from mop_t5.operations.attach import build_method
from t5_oracle import batch

IDS = torch.tensor([0, 2, 1, 2])
CASES = {name: (name, SMALL[name]) for name in method_names() if name in SMALL} | {
    "one prompt a scenario": ("prompt_tuning", {**SMALL["prompt_tuning"], "per_scenario": True}),
    "rows weighted one by one": ("attempt", {**SMALL["attempt"], "attention": "token"}),
    "one adapter a scenario": ("adapter", {"reduction": 4, "scenarios": SCENARIOS, "per_scenario": True}),
    "adapters dropped at random": ("adapter", {"reduction": 4, "drop_up_to": 1}),
    "one expert of several": ("task_moe", {**SMALL["task_moe"], "selection": "straight_through", "d_task": 64}),
    "routed experts": ("mop", {**SMALL["mop"], "routing": "xmoe_top2", "num_experts": 4}),
}
# with the small sizes in the place of the table's
SYSTEMS = {label: (s.method, {**s.options, **SMALL.get(s.method, {})}) for label, s in all_systems().items()}
TRAINED = SYSTEMS | {label: case for label, case in CASES.items() if case not in SYSTEMS.values()}


def attached(case, model=None):
    name, fields = case
    torch.manual_seed(11)
    return mop_t5.attach(backbone() if model is None else model, name, **{"scenarios": SCENARIOS, **fields})


def labelled():
    inputs = batch()
    return inputs | {"labels": inputs["decoder_input_ids"]}


def logits(model, ids=IDS):
    model.eval()
    with torch.no_grad():
        return model(**batch(), scenario_ids=ids).logits


def by_scenario(model):
    """Names of the parameters that hold something for each scenario, and the dimension that counts them."""
    method = model.mop
    more = build_method(type(method), method.config.with_scenarios([*SCENARIOS, "another"]), model, device="meta")
    found = {}
    for (name, parameter), larger in zip(method.named_parameters(), more.parameters(), strict=True):
        for dim, (size, size_of_larger) in enumerate(zip(parameter.shape, larger.shape, strict=True)):
            if size != size_of_larger:
                found[name] = dim
    return found


def of_case(parametrised):
    return pytest.mark.parametrize("case", CASES.values(), ids=CASES)(parametrised)


def test_every_method_is_here():
    assert set(SMALL) == set(method_names()), "a method needs small fields in method_cases.SMALL"


@pytest.mark.parametrize("case", TRAINED.values(), ids=TRAINED)
def test_trains_saves_loads_and_detaches(case, corpus, tmp_path):
    tokenizer, rows = corpus
    options = {"dtype": torch.float32, "vocab_size": len(tokenizer)}
    model = backbone(**options)
    model.shared.weight.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    attached(case, model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    encoded = EncodedExamples(rows, tokenizer, SCENARIOS, source_text=model.mop.source_text, max_source=40)
    inputs = Collator(tokenizer.pad_token_id, len(SCENARIOS))([encoded[i] for i in range(len(rows))])

    def outputs(model):
        model.eval()
        with torch.no_grad():
            return model(**inputs)

    untrained = outputs(model)
    run(model, corpus, tmp_path / "run")
    trained = outputs(model)
    assert trained.loss < untrained.loss - 0.05
    for name, parameter in model.named_parameters():
        is_trained = name.startswith("mop.") or model.mop.trains_backbone(name)
        assert is_trained or torch.equal(parameter, start[name]), f"{name} is not the method's to train"

    mop_t5.save(model, tmp_path / "saved")
    torch.manual_seed(99)
    loaded = mop_t5.load(backbone(**options), tmp_path / "saved")
    assert loaded.mop.config == model.mop.config
    assert torch.equal(outputs(loaded).logits, trained.logits)
    search = {"num_beams": 2, "max_new_tokens": 4, "scenario_ids": inputs["scenario_ids"]}
    search |= {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(loaded.generate(**search), model.generate(**search))

    mop_t5.detach(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"shared.weight"}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    del inputs["scenario_ids"]
    assert type(model) is type(backbone())
    assert torch.equal(outputs(model).logits, outputs(backbone(**options)).logits)


@of_case
def test_a_resumed_run_ends_where_a_straight_one_ends(case, corpus, tmp_path):
    """With validation, dropout, and whatever the method draws in training."""
    options = {"dtype": torch.float32, "vocab_size": len(corpus[0]), "dropout_rate": 0.1}
    changes = {"batch_size": 4, "log_every": 1, "evaluate_every": 2, "max_target": 4}
    runs = {}
    for name, steps, resume in (("straight", 4, False), ("cut", 2, False), ("cut", 4, True)):
        model = attached(case, backbone(**options))
        result = run(model, corpus, tmp_path / name, steps=steps, resume=resume, **changes)
        losses = {point["step"]: point["loss"] for point in result.history if "loss" in point}
        runs[name] = losses, dict(model.named_parameters())
    assert list(runs["cut"][0]) == [1, 2, 3, 4]
    assert runs["cut"][0] == runs["straight"][0]
    assert all(torch.equal(parameter, runs["cut"][1][name]) for name, parameter in runs["straight"][1].items())


@of_case
def test_gradients_are_in_its_own_parameters_only(case):
    model = attached(case, backbone().requires_grad_(True)).train()
    own = {n for n, _ in model.named_parameters() if n.startswith("mop.") or model.mop.trains_backbone(n)}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == own
    model(**labelled(), scenario_ids=IDS).loss.backward()
    # processes that train together count on a gradient for every one of them
    assert {n for n, p in model.named_parameters() if p.grad is not None} == own
    assert all(model.get_parameter(n).grad.isfinite().all() for n in own)
    assert any(model.get_parameter(n).grad.abs().max() > 1e-8 for n in own)


@of_case
def test_an_absent_scenario_keeps_what_is_its_own(case, corpus, tmp_path):
    """Bit for bit, in spite of weight decay and of momentum from steps in which it was there."""
    model = attached(case, backbone(dtype=torch.float32, vocab_size=len(corpus[0])))
    mine = by_scenario(model)
    parameters = dict(model.mop.named_parameters())
    listed = {id(parameter): dim for parameter, dim in model.mop.expert_parameters()}
    assert listed == {id(parameters[name]): dim for name, dim in mine.items()}
    model(**labelled(), scenario_ids=[0, 2, 0, 2]).loss.backward()
    for name, dim in mine.items():
        assert not parameters[name].grad.select(dim, 1).any()
        assert parameters[name].grad.select(dim, 2).any()
    before = {name: parameters[name].detach().clone() for name in mine}
    rows = [row for row in corpus[1] if row.scenario == SCENARIOS[2]]
    run(model, corpus, tmp_path, rows, steps=3, weight_decay=0.5)
    for name, dim in mine.items():
        changed = [not torch.equal(parameters[name].select(dim, s), before[name].select(dim, s)) for s in range(3)]
        assert changed == [False, False, True], name


@of_case
def test_scenarios_come_and_go(case):
    model = attached(case)
    before = logits(model)
    state = {name: tensor.clone() for name, tensor in model.mop.state_dict().items()}
    mine = by_scenario(model)
    if not mine:
        with raises(ValueError, "scenarios", "share", "parameters"):
            mop_t5.add_scenario(model, "hotel")
        assert torch.equal(logits(model), before)
        return
    mop_t5.add_scenario(model, "hotel", like="ticket")
    assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model, 3), logits(model, 1), atol=1e-12, rtol=0)
    model.zero_grad()
    model(**labelled(), scenario_ids=[0, 3, 1, 2]).loss.backward()
    for name, parameter in model.mop.named_parameters():
        if name in mine:
            slices = [parameter.grad.select(mine[name], s).any().item() for s in range(4)]
            assert slices == [False, False, False, True], name
        else:
            assert parameter.grad is None, name
    mop_t5.remove_scenario(model, "hotel")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.mop.state_dict().items())
    mop_t5.remove_scenario(model, "taxi")
    torch.testing.assert_close(logits(model, [0, 1, 0, 1]), attached_logits(case, [1, 2, 1, 2]), atol=1e-12, rtol=0)


def attached_logits(case, ids):
    return logits(attached(case), ids)


@of_case
def test_beams_of_mixed_scenarios(case):
    model, inputs = attached(case), batch()
    del inputs["decoder_input_ids"]
    search = {"num_beams": 3, "num_return_sequences": 2, "min_new_tokens": 5, "max_new_tokens": 5}
    mixed = model.generate(**inputs, **search, scenario_ids=IDS)
    assert torch.equal(model.generate(**inputs, **search, scenario_ids=IDS, use_cache=False), mixed)
    for scenario in range(3):
        rows = scenario == IDS
        single = model.generate(**{k: v[rows] for k, v in inputs.items()}, **search, scenario_ids=scenario)
        assert torch.equal(single, mixed[rows.repeat_interleave(2)])
    if model.mop.distinguishes_scenarios:
        assert (logits(model) - logits(model, IDS.roll(1))).abs().max() > 1e-6
    else:
        assert torch.equal(logits(model), logits(model, IDS.roll(1)))


@of_case
def test_copies_are_independent(case):
    model = attached(case)
    expected = logits(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert torch.equal(logits(model), expected)
        mop_t5.detach(other)
    assert mop_t5.is_attached(model)


@of_case
def test_counts_without_weights(case):
    real = attached(case)
    empty = attached(case, mop_t5.build_backbone(real.config, device="meta"))
    assert mop_t5.count_parameters(empty) == mop_t5.count_parameters(real)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    backbone = {n: p for n, p in real.named_parameters() if not n.startswith("mop.")}
    trained = sum(p.numel() for n, p in backbone.items() if real.mop.trains_backbone(n))
    assert mop_t5.count_parameters(real).trained == trained + sum(p.numel() for p in real.mop.parameters())


def loss_and_gradients(model, call, inputs, ids):
    """Of what is trained, by name; the seed is for methods that draw numbers in training."""
    model.zero_grad()
    torch.manual_seed(5)
    loss = call(**inputs, scenario_ids=ids).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@of_case
def test_checkpointing_changes_nothing(case):
    model = attached(case).train()
    expected = loss_and_gradients(model, model, labelled(), IDS)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got = loss_and_gradients(model, model, labelled(), IDS)
    torch.testing.assert_close(got, expected, atol=1e-13, rtol=1e-11)


@of_case
def test_compiles_without_graph_breaks(case):
    """For one shape: several are proved in test_injection_attach.py, and cost a minute each.

    The forward is traced. The backward is, too, of methods that call operators of mop_kernels or mix experts.
    """
    torch.compiler.reset()
    model = attached(case, backbone(dtype=torch.float32, num_layers=1, num_decoder_layers=1)).train()
    name, fields = case
    whole = name in ("mop", "compacter", "attempt", "hyperformer", "task_moe") and fields == SMALL[name]
    compiled = torch.compile(model, backend="aot_eager" if whole else "eager", fullgraph=True, dynamic=False)
    got = loss_and_gradients(model, compiled, labelled(), IDS)  # first, so that nothing has run before
    torch.testing.assert_close(got, loss_and_gradients(model, model, labelled(), IDS), atol=1e-4, rtol=1e-4)


@of_case
def test_half_precision(case):
    """A bfloat16 backbone keeps the method in float32; autocast on a float32 one comes close to it."""
    half = attached(case, backbone(dtype=torch.bfloat16)).train()
    assert {p.dtype for p in half.mop.parameters()} <= {torch.float32}
    single = attached(case, backbone(dtype=torch.float32)).train()
    expected = loss_and_gradients(single, single, labelled(), IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss_and_gradients(single, single, labelled(), IDS)
    for got in (cast, loss_and_gradients(half, half, labelled(), IDS)):
        assert got.keys() == expected.keys()
        assert all(gradient.isfinite().all() for gradient in got.values())
        assert abs(got["loss"] - expected["loss"]) < 0.1 * expected["loss"]


def nudged(case, **options):
    """Attached, with parameters that change what the backbone gives."""
    model, generator = attached(case, backbone(**options)), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((0.2 * noise).to(parameter.dtype))
    return model


@of_case
def test_a_cast_after_attach_casts_the_method_too(case):
    model = nudged(case)
    expected, scale = logits(model), logits(model).std()
    model.to(torch.bfloat16)
    got = logits(model)
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().mean() < 0.1 * scale
    source = {name: tensor for name, tensor in batch().items() if name != "decoder_input_ids"}
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype)
        assert model.generate(**source, scenario_ids=IDS, max_new_tokens=2).shape[0] == len(IDS)
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@of_case
@pytest.mark.filterwarnings("error")
def test_threads_do_not_see_each_other(case):
    """Three threads, each with a scenario, are in the same sub-layer at the same time."""
    model = nudged(case)
    expected = [logits(model, scenario) for scenario in range(3)]
    barrier = threading.Barrier(3, timeout=20)

    def wait(module, args):
        barrier.wait()

    places = [block.layer[-1] for stack in (model.encoder, model.decoder) for block in stack.block]
    for module in (*places, model.lm_head):
        module.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda scenario: logits(model, scenario), range(3)))
    assert all(map(torch.equal, got, expected))
