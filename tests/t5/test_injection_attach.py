"""Attach and detach on one model: reversible bit for bit, nothing trained but the method, clear errors."""

import copy
import importlib
import inspect
import pickle

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5 import backbone
from mop_t5.attachment import attention
from mop_t5.attachment import inject as injection
from mop_t5.attachment.additions import Additions
from t5_oracle import batch, random_prefix, tiny
from torch._dynamo.testing import CompileCounterWithBackend

SCENARIOS = ["a", "b", "c"]
FIELDS = {"prefix_length": 5, "d_mid": 8, "scenarios": SCENARIOS}
MOP_FIELDS = {**FIELDS, "terms_down": 4, "terms_up": 4}
IDS = torch.tensor([0, 2, 0, 2])


def attach(model, method="mop", **overrides):
    return mop_t5.attach(model, method, **{**(MOP_FIELDS if method == "mop" else FIELDS), **overrides})


def labelled(inputs=None):
    inputs = inputs or batch("padding")
    inputs["labels"] = inputs.pop("decoder_input_ids")
    inputs.pop("decoder_attention_mask", None)
    return inputs


def snapshot(model):
    """Everything about a model that attach touches or might touch."""
    return {
        "class": type(model),
        "signature": str(inspect.signature(model.forward)),
        "attributes": {
            name: {k: repr(v) for k, v in vars(module).items() if not k.startswith("_modules")}
            for name, module in model.named_modules()
            if not list(module.children())
        },
        "attribute names": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "configs": [
            (owner.config.to_dict(), owner.config._attn_implementation)
            for owner in (model, model.encoder, model.decoder)
        ],
        "keys": list(model.state_dict()),
        "pointers": {name: p.data_ptr() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "ignored on save": model._keys_to_ignore_on_save,
        "training": {name: module.training for name, module in model.named_modules()},
    }


@pytest.mark.parametrize("method", ["mop", "prefix_tuning"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_detach_gives_the_model_back(method, implementation):
    model, inputs = tiny(implementation=implementation), labelled()
    model.encoder.block[0].requires_grad_(True)  # a user's own choice comes back too
    before = snapshot(model)
    with torch.no_grad():
        logits = model(**inputs).logits
        beam = model.generate(inputs["input_ids"], num_beams=2, max_new_tokens=4, use_cache=False)
    same = attach(model, method)
    assert same is model
    assert isinstance(model, before["class"])
    model(**inputs, scenario_ids=IDS).loss.backward()
    model.generate(inputs["input_ids"], scenario_ids=IDS, max_new_tokens=3)
    assert mop_t5.detach(model) is model
    assert snapshot(model) == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
        again = model.generate(inputs["input_ids"], num_beams=2, max_new_tokens=4, use_cache=False)
        assert torch.equal(again, beam)
    attach(model, method)  # and can be attached again
    assert mop_t5.is_attached(model)


def test_snapshot_sees_what_attach_does():
    model = tiny()
    before = snapshot(model)
    after = snapshot(attach(model))
    changed = {key for key in before if before[key] != after[key]}
    assert changed >= {"class", "signature", "attribute names", "configs", "keys", "ignored on save", "modules"}
    assert all(after["pointers"][name] == pointer for name, pointer in before["pointers"].items())


def test_the_model_stays_a_t5():
    model = tiny()
    plain = type(model)
    attach(model)
    assert type(model).__name__ == plain.__name__
    assert type(model).__module__ == plain.__module__
    names = list(inspect.signature(model.forward).parameters)
    assert names[-5:] == ["scenario_ids", "mop_additions", "skip_logits", "label_smoothing", "kwargs"]
    assert names[:-5] == list(inspect.signature(plain.forward).parameters)[1:-1]
    assert model.scenarios == ("a", "b", "c")
    assert [k for k in model.state_dict() if not k.startswith("mop.")] == list(tiny().state_dict())


@pytest.mark.parametrize("method", ["mop", "prefix_tuning"])
@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_an_optimiser_step_changes_the_method_only(method, kind):
    model = attach(tiny(kind).requires_grad_(True), method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in model.mop.parameters()}
    optimiser = torch.optim.AdamW(trainable, lr=0.1)
    model.train()
    model(**labelled(), scenario_ids=IDS).loss.backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        if name.startswith("mop."):
            assert not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name


def test_absent_experts_have_gradient_exactly_zero():
    model = attach(tiny(), attention=["encoder_self", "decoder_self", "cross"])
    model(**labelled(), scenario_ids=IDS).loss.backward()
    pairs = list(model.mop.expert_parameters())
    assert len(pairs) == 3 * 3 * 2  # attentions, maps, left factor and local
    for parameter, dim in pairs:
        assert not parameter.grad.select(dim, 1).any()
        assert parameter.grad.select(dim, 0).any()
        assert parameter.grad.select(dim, 2).any()


def test_running_a_few_experts_equals_running_all():
    model, inputs = attach(tiny()), labelled()

    def gradients(prefix):
        model.zero_grad()
        model(**inputs, scenario_ids=IDS, mop_additions=prefix).loss.backward()
        return [p.grad.clone() for p in model.mop.parameters()]

    few = model.mop.additions(IDS)
    assert few.scenarios.tolist() == [0, 2]
    assert few.prefix("decoder_self", 0)[0].shape[0] == 2
    for f, a in zip(gradients(few), gradients(model.mop.additions()), strict=True):
        torch.testing.assert_close(f, a, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("method", ["mop", "prefix_tuning"])
def test_checkpointing_changes_nothing(method):
    model, inputs = attach(tiny(dropout_rate=0.0), method).train(), labelled()

    def gradients():
        model.zero_grad()
        loss = model(**inputs, scenario_ids=IDS).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.mop.parameters())]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for got, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-14, rtol=1e-12)


def test_two_forwards_before_one_backward_under_checkpointing():
    model, inputs = attach(tiny(dropout_rate=0.0)).train(), labelled()
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 1, 2, 0])

    def together():
        model.zero_grad()
        (model(**inputs, scenario_ids=first).loss + 2 * model(**inputs, scenario_ids=second).loss).backward()
        return [p.grad.clone() for p in model.mop.parameters()]

    model.zero_grad()
    model(**inputs, scenario_ids=first).loss.backward()
    (2 * model(**inputs, scenario_ids=second).loss).backward()
    apart = [p.grad.clone() for p in model.mop.parameters()]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for got, expected in zip(together(), apart, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-13, rtol=1e-11)


def test_reentrant_checkpointing_is_refused():
    model = attach(tiny()).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with raises(RuntimeError, "use_reentrant=True", "'use_reentrant': False"):
        model(**labelled(), scenario_ids=IDS)
    with torch.no_grad():
        model.eval()(**labelled(), scenario_ids=IDS)


def test_training_builds_no_cache():
    model, inputs = attach(tiny()), labelled()
    assert model.train()(**inputs, scenario_ids=IDS).past_key_values is None
    assert model.eval()(**inputs, scenario_ids=IDS).past_key_values is not None


def test_bfloat16_backbone_keeps_a_float32_method():
    model, inputs = attach(tiny(dtype=torch.bfloat16)), labelled()
    assert {p.dtype for p in model.mop.parameters()} == {torch.float32}
    out = model(**inputs, scenario_ids=IDS)
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.mop.parameters())
    model.generate(inputs["input_ids"], scenario_ids=IDS, max_new_tokens=3)


def test_autocast():
    model, inputs = attach(tiny(dtype=torch.float32)), labelled()
    expected = model(**inputs, scenario_ids=IDS).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, scenario_ids=IDS).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), expected, atol=0.2, rtol=0.05)
    assert all(p.grad.dtype == torch.float32 for p in model.mop.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.generate(inputs["input_ids"], scenario_ids=IDS, num_beams=2, max_new_tokens=3)
    assert tokens.shape[0] == 4


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(copier):
    model, inputs = attach(tiny()), labelled()
    expected = model(**inputs, scenario_ids=IDS).logits
    other = copier(model)
    assert type(other) is type(model)
    assert torch.equal(other(**inputs, scenario_ids=IDS).logits, expected)
    with torch.no_grad():
        other.mop.input.add_(1)
    mop_t5.detach(other)
    assert torch.equal(model(**inputs, scenario_ids=IDS).logits, expected)
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, tiny()(**inputs).logits)


def test_two_adapters_on_one_model_in_turn():
    """Each computes on the model what it computes on a model of its own, whatever was attached before it."""
    model, inputs = tiny(), labelled()

    def results(model, method):
        torch.manual_seed(5)
        attach(model, method)
        optimiser = torch.optim.SGD(model.mop.parameters(), lr=0.1)
        model(**inputs, scenario_ids=IDS).loss.backward()
        optimiser.step()
        logits = model(**inputs, scenario_ids=IDS).logits.detach()
        tokens = model.generate(inputs["input_ids"], scenario_ids=IDS, num_beams=2, max_new_tokens=4)
        mop_t5.detach(model)
        return logits, tokens

    expected = {method: results(tiny(), method) for method in ("mop", "prefix_tuning")}
    assert not torch.equal(expected["mop"][0], expected["prefix_tuning"][0])
    for method in ("mop", "prefix_tuning", "mop"):
        for got, right in zip(results(model, method), expected[method], strict=True):
            assert torch.equal(got, right)


def test_two_models_in_one_process_do_not_see_each_other():
    plain, model, inputs = tiny(), attach(tiny()), labelled()
    with torch.no_grad():
        expected = tiny()(**inputs).logits
        model(**inputs, scenario_ids=IDS)
        assert torch.equal(plain(**inputs).logits, expected)
        assert not mop_t5.is_attached(plain)


def test_set_attn_implementation_keeps_the_prefix():
    model, inputs = attach(tiny()), labelled()
    sdpa = model(**inputs, scenario_ids=IDS).logits
    model.set_attn_implementation("eager")
    out = model(**inputs, scenario_ids=IDS, output_attentions=True)
    torch.testing.assert_close(out.logits, sdpa, atol=1e-12, rtol=0)
    assert out.decoder_attentions[0].shape[-1] == 5 + 5
    mop_t5.detach(model)
    assert model.decoder.config._attn_implementation == "eager"
    attach(model)
    with raises(ValueError, "sdpa, eager", "'flex_attention'"):
        model.set_attn_implementation("flex_attention")


def test_attention_switched_behind_our_back_is_noticed():
    model, inputs = attach(tiny()), labelled()
    model.decoder.config._attn_implementation_internal = "sdpa"
    with raises(RuntimeError, "decoder", "'sdpa'", "model.set_attn_implementation"):
        model(**inputs, scenario_ids=IDS)
    with raises(RuntimeError, "'sdpa'"):
        model.generate(inputs["input_ids"], scenario_ids=IDS)


def test_encoder_without_the_prefix_is_refused():
    model = attach(tiny())
    with raises(RuntimeError, "encoder_self", "layer 0", "mop_additions"):
        model.encoder(torch.ones(1, 3, dtype=torch.long))
    with raises(RuntimeError, "scenario_ids", "missing", "3 scenarios"):
        model.encoder(torch.ones(1, 3, dtype=torch.long), mop_additions=Additions(random_prefix(model, 2)))


def test_accelerate_leftovers():
    from accelerate.utils import convert_outputs_to_fp32

    model, inputs = attach(tiny(dtype=torch.float32)), labelled()
    # what Accelerator.prepare does to a model under bf16
    model._original_forward = model.forward
    model.forward = convert_outputs_to_fp32(
        torch.autocast("cpu", torch.bfloat16)(model.forward.__func__).__get__(model)
    )
    model(**inputs, scenario_ids=IDS).loss.backward()
    mop_t5.detach(model)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, tiny(dtype=torch.float32)(**inputs).logits)
    model.forward = model.forward
    with raises(RuntimeError, "forward of model", "replaced", "attach", "accelerate.hooks"):
        attach(model)
    del model.forward
    attach(model)
    model.forward = model.forward
    with raises(RuntimeError, "forward of model", "replaced", "detach", "accelerate.hooks"):
        mop_t5.detach(model)


def test_experts_do_not_stand_behind_a_replaced_forward():
    """accelerate replaces the forward of a block, and the forward of its new class would never run."""
    model, where = (
        tiny(),
        ("forward of decoder.block[1]", "replaced", "remove_hook_from_submodules"),
    )
    block, before = model.decoder.block[1], snapshot(model)
    block.forward = block.forward
    with raises(RuntimeError, *where):
        mop_t5.attach(model, "task_moe", scenarios=SCENARIOS)
    del block.forward
    assert snapshot(model) == before
    mop_t5.attach(model, "task_moe", scenarios=SCENARIOS)
    block.forward = block.forward
    with raises(RuntimeError, *where):
        mop_t5.detach(model)
    assert mop_t5.is_attached(model)
    del block.forward
    assert snapshot(mop_t5.detach(model)) == before


def test_attach_errors_change_nothing():
    model = tiny()
    before = snapshot(model)
    with raises(RuntimeError, "model", "mop_t5.attach"):
        mop_t5.detach(model)
    with raises(ValueError, "terms_down", "d_model = 24", "5", "terms_down"):
        attach(model, terms_down=5)
    model.decoder.config._attn_implementation_internal = "flex_attention"
    with raises(ValueError, "sdpa, eager", "'flex_attention'"):
        attach(model)
    model.decoder.config._attn_implementation_internal = "sdpa"
    assert snapshot(model) == before
    attach(model)
    with raises(RuntimeError, "model", "'mop'", "mop_t5.detach"):
        attach(model)
    with raises(TypeError, "model", "T5ForConditionalGeneration", "Linear"):
        attach(torch.nn.Linear(2, 2))
    with raises(ValueError, "prefixes", "decoder"):
        Additions({"decoder": ()})


@pytest.mark.parametrize("step", ["add_hooks", "insert_experts", "combined"])
def test_an_attach_that_fails_half_way_changes_nothing(step, monkeypatch):
    model = tiny()
    model.encoder.block[0].requires_grad_(True)
    before = snapshot(model)

    def fail(*args, **options):
        raise MemoryError(step)

    monkeypatch.setattr(injection, step, fail)
    with pytest.raises(MemoryError, match=step):
        mop_t5.attach(model, "adapter", reduction=4)
    assert snapshot(model) == before


def replace_embeddings(model):
    model.shared = torch.nn.Embedding(50, 24, dtype=torch.float64)


def wrap_a_layer(model):
    layer = model.decoder.block[1].layer[0].SelfAttention
    layer.q = torch.nn.Sequential(layer.q)


@pytest.mark.parametrize("change", [replace_embeddings, wrap_a_layer])
def test_a_detach_that_cannot_restore_changes_nothing(change):
    model, inputs = mop_t5.attach(tiny(), "fine_tuning", scenarios=["a"]), labelled()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    change(model)
    before, loss = snapshot(model), model(**inputs).loss
    with raises(RuntimeError, "detach", "backbone", "shape"):
        mop_t5.detach(model)
    assert snapshot(model) == before
    assert torch.equal(model(**inputs).loss, loss)


def test_detach_leaves_what_others_have_added():
    model = attach(tiny())
    model.probe = torch.nn.Linear(2, 2)
    mop_t5.detach(model)
    assert model.probe.weight.requires_grad
    assert not any(name.startswith("_mop") for module in model.modules() for name in vars(module))
    assert torch.equal(model(**batch()).logits, tiny()(**batch()).logits)


@pytest.mark.parametrize("version", ["4.57.1", "5.14.1"])
def test_old_transformers_is_refused(version, monkeypatch):
    monkeypatch.setattr("transformers.__version__", version)
    with raises(ImportError, "mop_t5", "transformers >= 5.15", version):
        importlib.reload(backbone)
    for fine in ("5.15.0", "5.15.0.dev0", "5.23.0", "6.0.0"):
        monkeypatch.setattr("transformers.__version__", fine)
        importlib.reload(backbone)


def test_umt5_with_sdpa_needs_a_transformers_that_is_causal(monkeypatch):
    monkeypatch.setattr(injection, "transformers_version", "5.17.0")
    model = tiny("umt5", implementation="eager")
    model.decoder.config._attn_implementation_internal = "sdpa"
    with raises(ValueError, "umT5", "sdpa", "causal", "transformers 5.17.0"):
        attach(model)
    attach(tiny("umt5", implementation="eager"))
    attach(tiny("mt5"))


def test_masks_are_registered_with_the_functions():
    """Without a mask function of the same name transformers passes no masks at all."""
    from transformers import AttentionMaskInterface

    for name in attention.PLAIN:
        assert name in AttentionMaskInterface._global_mapping


def test_compiles_without_graph_breaks():
    """Forward and backward for every batch, source and target size; long queries and short, which take two ways."""
    torch.compiler.reset()
    model = attach(tiny(dtype=torch.float32, dropout_rate=0.0, num_layers=1, num_decoder_layers=1)).train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for i, size in enumerate((4, 3, 5, 2, 6)):
        inputs = labelled(batch("padding", size, 70 + i, 6 - i % 2))
        ids = torch.arange(size) % 3
        results = []
        for call in (compiled, model):  # nothing has run before that the compiler could rely on
            model.zero_grad()
            loss = call(**inputs, scenario_ids=ids).loss
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in model.mop.parameters())])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert counter.frame_count <= 2


def test_generation_with_a_static_cache_and_a_compiled_forward():
    torch.compiler.reset()
    model, inputs = attach(tiny(num_layers=1, num_decoder_layers=1)), batch()
    del inputs["decoder_input_ids"]
    options = {"scenario_ids": IDS, "max_new_tokens": 6, "cache_implementation": "static"}
    expected = model.generate(**inputs, **options)
    counter = CompileCounterWithBackend("eager")
    model.forward = torch.compile(model.forward, backend=counter, fullgraph=True)
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert 1 <= counter.frame_count <= 2
