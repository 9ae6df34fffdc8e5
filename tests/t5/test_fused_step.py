"""Training by the operations of mop_kernels.step: losses, gradients, and what is saved."""

import mop_t5
import pytest
import torch
from mop_t5.attachment import fused_layers
from mop_t5.attachment.mixin import RuntimeMixin, plain_class
from t5_oracle import SIZES, batch, tiny
from torch.utils._pytree import tree_leaves
from transformers.activations import ACT2FN

import mop_kernels

IDS = torch.tensor([0, 2, 1, 2])
KINDS = ("t5", "mt5", "umt5")
DEPTH = SIZES["num_layers"] + SIZES["num_decoder_layers"]
GATED = ("t5_gated", "mt5", "umt5")


def attached(kind="t5", method="mop", dropout=0.0, **options):
    torch.manual_seed(0)
    model = tiny(kind, dtype=torch.float32, implementation="sdpa")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        if hasattr(module, "relative_attention_num_buckets"):
            module.dropout = dropout
    sizes = {"d_mid": 4, "prefix_length": 3} if method in ("mop", "prefix_tuning") else {}
    terms = {"terms_down": 2, "terms_up": 2} if method == "mop" else {}
    sizes |= {"adapter": {"reduction": 4}, "compacter": {"reduction": 4, "terms": 2}}.get(method, {})
    return mop_t5.attach(model, method, scenarios=["a", "b", "c"], **sizes, **terms, **options).train()


def step(model, inputs, seed=3, **options):
    torch.manual_seed(seed)
    model.zero_grad()
    output = model(**inputs, scenario_ids=IDS, **options)
    output.loss.backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def inputs_of(kind="padding"):
    inputs = batch(kind)
    labels = torch.randint(2, 20, (4, 6))
    labels[0, 4:] = -100
    return {name: t for name, t in inputs.items() if not name.startswith("decoder")} | {"labels": labels}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["mop", "prefix_tuning", "adapter", "compacter", "prompt_tuning"])
def test_loss_and_gradients_equal_plain_pytorch(kind, method):
    model, inputs = attached(kind, method), inputs_of()
    fused, gradients = step(model, inputs, skip_logits=True)
    assert fused.logits is None
    with mop_kernels.use_backend("reference"):
        plain, expected = step(model, inputs)
    torch.testing.assert_close(fused.loss, plain.loss, rtol=1e-5, atol=0)
    assert gradients.keys() == expected.keys()
    scale = max(g.abs().max() for g in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-3, atol=2e-5 * scale.item(), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_a_step_with_dropout(kind):
    model, inputs = attached(kind, dropout=0.3), inputs_of()
    one, same, other = (step(model, inputs, seed, skip_logits=True) for seed in (3, 3, 4))
    assert one[0].loss == same[0].loss != other[0].loss
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, same[1][name], rtol=0, atol=0)


def test_checkpointing_draws_the_same_masks_again():
    model, inputs = attached(dropout=0.3), inputs_of()
    plain, gradients = step(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, recomputed = step(model, inputs)
    torch.testing.assert_close(again.loss, plain.loss)
    for name, gradient in recomputed.items():
        torch.testing.assert_close(gradient, gradients[name])


def test_evaluation_and_generation_do_not_change():
    model, inputs = attached(), inputs_of()
    model.eval()

    def run():
        logits = model(**inputs, scenario_ids=IDS, skip_logits=True).logits
        return logits, model.generate(inputs["input_ids"], scenario_ids=IDS, max_new_tokens=4, do_sample=False)

    found = run()
    for layer in (m for m in model.modules() if isinstance(m, RuntimeMixin) and m is not model):
        layer.__class__ = plain_class(layer)
    for a, e in zip(found, run(), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(("kind", "network"), [("t5", "FusedNetwork"), ("mt5", "FusedGatedNetwork")])
def test_detach_gives_the_classes_back(kind, network):
    model = tiny(kind)
    before = [type(module) for module in model.modules()]
    attachedt5 = mop_t5.attach(model, "mop", scenarios=["a", "b"], d_mid=4, terms_down=2, terms_up=2, prefix_length=2)
    fused = [type(m) for m in model.modules() if isinstance(m, fused_layers.FusedDropout)]
    assert len(fused) > 10
    assert sum(isinstance(m, getattr(fused_layers, network)) for m in model.modules()) == DEPTH
    method = attachedt5.mop
    mop_t5.detach(attachedt5)
    assert [type(module) for module in model.modules()] == before
    assert not any(isinstance(m, fused_layers.FusedDropout) for m in method.modules())


def gated_calls(model, inputs, monkeypatch):
    """The dropout probabilities of the calls of gated_gelu_dropout in a training step."""
    seen, real = [], mop_kernels.gated_gelu_dropout
    with monkeypatch.context() as patch:
        patch.setattr(mop_kernels, "gated_gelu_dropout", lambda gate, x, p: seen.append(p) or real(gate, x, p))
        step(model, inputs)
    return seen


def networks(model):
    return [m for m in model.modules() if isinstance(m, fused_layers.FusedGatedNetwork)]


@pytest.mark.parametrize("kind", GATED)
def test_gated_networks_run_fused_in_training(kind, monkeypatch):
    model, inputs = attached(kind, dropout=0.3), inputs_of()
    called = []
    for network in networks(model):
        for inner in (network.wi_0, network.wi_1, network.wo):
            inner.register_forward_hook(lambda *args: called.append(args[0]))
    assert gated_calls(model, inputs, monkeypatch) == [0.3] * DEPTH
    assert len(called) == 3 * DEPTH
    for network in networks(model):
        network.dropout.eval()
    assert gated_calls(model, inputs, monkeypatch) == [0.0] * DEPTH
    with mop_kernels.use_backend("reference"):
        assert not gated_calls(model, inputs, monkeypatch)


OF_TORCH = {"torch tanh": torch.nn.GELU(approximate="tanh"), "torch erf": torch.nn.GELU()}
OTHERS = ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu", "silu", "hooked", *OF_TORCH)


@pytest.mark.parametrize("name", OTHERS)
def test_gated_networks_with_other_activations(name, monkeypatch):
    """Those that are the same function run fused. All others, and hooked ones, keep their forward."""
    model, inputs = attached("mt5"), inputs_of()
    for network in networks(model):
        if name == "hooked":
            network.act.register_forward_hook(lambda module, args, output: 2 * output)
        else:
            network.act = OF_TORCH.get(name) or ACT2FN[name]
    calls = gated_calls(model, inputs, monkeypatch)
    assert len(calls) == (DEPTH if "tanh" in name else 0)
    found, _ = step(model, inputs)
    with mop_kernels.use_backend("reference"):
        expected, _ = step(model, inputs)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("wide", ["wi_0", "wi_1"])
def test_a_gated_network_whose_maps_return_two_dtypes(wide):
    model, inputs = attached("mt5"), inputs_of()
    for network in networks(model):
        getattr(network, wide).register_forward_hook(lambda module, args, output: output.double())
    found, gradients = step(model, inputs)
    with mop_kernels.use_backend("reference"):
        expected, _ = step(model, inputs)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    assert gradients


def test_a_mask_of_four_dimensions_takes_the_plain_way():
    """Only a padding mask says which keys a query sees."""
    model, inputs = attached(), inputs_of()
    mask = torch.rand(4, 1, inputs["input_ids"].shape[1], inputs["input_ids"].shape[1]) < 0.7
    mask |= torch.eye(mask.shape[-1], dtype=torch.bool)
    ids = inputs["input_ids"]
    given = {"input_ids": ids, "labels": inputs["labels"], "encoder_outputs": None}
    seen = []
    real = mop_kernels.prefix_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mop_kernels.prefix_attention", lambda *a, **k: seen.append(1) or real(*a, **k))
        model(**given, attention_mask=ids.ne(0), scenario_ids=IDS)
        assert seen
        seen.clear()
        hidden = model.encoder(ids, mask, mop_additions=model.mop.additions(), scenario_ids=IDS)
        assert not seen
    assert hidden[0].isfinite().all()


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_what_is_saved_for_backward(kind):
    """Without kernels the scores, masks and hidden activations are saved. With them far less is."""
    model, inputs = attached(kind, dropout=0.1), inputs_of()

    def saved(**options):
        kept = {}

        def pack(t):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        frozen = {p.untyped_storage().data_ptr() for p in tree_leaves(dict(model.named_parameters()))}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(**inputs, scenario_ids=IDS, **options)
        del output
        return sum(size for pointer, size in kept.items() if pointer not in frozen)

    fused = saved(skip_logits=True)
    with mop_kernels.use_backend("reference"):
        assert saved() > 2 * fused


@pytest.mark.parametrize("change", ["trained", "hooked", "bias"])
def test_logits_stay_where_somebody_needs_them(change):
    model, inputs = attached(), inputs_of()
    if change == "trained":
        model.lm_head.weight.requires_grad_()
    elif change == "hooked":
        model.lm_head.register_forward_hook(lambda module, args, output: output)
    else:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features), requires_grad=False)
    assert model(**inputs, scenario_ids=IDS, skip_logits=True).logits is not None


@pytest.mark.parametrize("skip_logits", [False, True])
def test_label_smoothing(skip_logits):
    model, inputs = attached(), inputs_of()
    output, gradients = step(model, inputs, skip_logits=skip_logits, label_smoothing=0.2)
    assert (output.logits is None) == skip_logits
    model.zero_grad()
    logits = model(**inputs, scenario_ids=IDS).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, inputs["labels"].flatten(), label_smoothing=0.2)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)
    expected.backward()
    scale = max(g.abs().max() for g in gradients.values()).item()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-3, atol=1e-5 * scale, msg=name)


def test_label_smoothing_of_a_tuple():
    model, inputs = attached(), inputs_of()
    by_name = model(**inputs, scenario_ids=IDS, label_smoothing=0.1)
    loss, logits, *_ = model(**inputs, scenario_ids=IDS, label_smoothing=0.1, return_dict=False, skip_logits=True)
    assert (loss, logits.shape) == (by_name.loss, by_name.logits.shape)
    with pytest.raises(ValueError, match=r"label_smoothing.*1\.5"):
        model(**inputs, scenario_ids=IDS, label_smoothing=1.5)


def test_a_cache_in_training_mode_continues_as_in_evaluation():
    """The queries behind a cache are not the first tokens, which a causal kernel would take them for."""
    model, inputs = attached(), inputs_of()
    ids, decoder_ids = inputs["input_ids"], torch.randint(2, 20, (4, 5))

    def last_logits():
        first = model(input_ids=ids, decoder_input_ids=decoder_ids[:, :3], scenario_ids=IDS, use_cache=True)
        given = {"encoder_outputs": (first.encoder_last_hidden_state,), "past_key_values": first.past_key_values}
        return model(decoder_input_ids=decoder_ids[:, 3:], attention_mask=ids.ne(0), scenario_ids=IDS, **given).logits

    expected = model.eval()(input_ids=ids, decoder_input_ids=decoder_ids, scenario_ids=IDS).logits[:, 3:]
    model.train()
    torch.testing.assert_close(last_logits(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_tables_in_bfloat16_are_summed_in_float32(kind):
    """torch's own sums stop growing: those of relative positions are off by 0.3 to 0.5 for these lengths."""
    torch.manual_seed(0)
    inputs = {name: torch.randint(2, 20, (2, length)) for name, length in (("input_ids", 256), ("labels", 64))}
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        model = mop_t5.attach(tiny(kind, dtype=torch.bfloat16).to(dtype), "fine_tuning", scenarios=["a"]).eval()
        model(**inputs).loss.backward()
        found.append({name: p.grad.double() for name, p in model.named_parameters()})
    half, right = found
    errors = {name: ((half[name] - right[name]).norm() / right[name].norm()).item() for name in right}
    tables = {name for name in errors if "relative_attention_bias" in name or "shared" in name}
    assert len(tables) >= 3
    usual = max(error for name, error in errors.items() if name not in tables)  # of bfloat16
    assert max(errors[name] for name in tables) < 1.2 * usual
