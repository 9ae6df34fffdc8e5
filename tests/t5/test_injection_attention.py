"""What the attention with a prefix costs: one mask a stack, and no copy of keys, values or prefixes while decoding."""

import weakref

import mop_t5
import pytest
import torch
from mop_t5.attachment import attention
from mop_t5.attachment.additions import Additions
from t5_oracle import batch, logits, random_prefix, tiny
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, DynamicCache, EncoderDecoderCache

import mop_kernels

IDS = torch.tensor([0, 2, 1, 2])


def attached(kind="t5", **options):
    return mop_t5.attach(tiny(kind, **options), "prefix_tuning", prefix_length=2, d_mid=4, scenarios=["a", "b", "c"])


class Masks(TorchFunctionMode):
    """The masks that the fused attention is given."""

    def __init__(self, keep=lambda mask: mask):
        super().__init__()
        self.seen = []
        self.keep = keep

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append(self.keep(kwargs["attn_mask"]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_mask_a_stack(kind, checkpointing, monkeypatch):
    monkeypatch.setattr(attention, "_LONG_QUERY", 1)
    model, inputs = attached(kind, implementation="sdpa").train(), batch("padding")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with Masks() as masks, mop_kernels.use_backend("reference"):  # without the kernel that reads no such mask
        model(**inputs, scenario_ids=IDS, mop_additions=Additions(random_prefix(model, 3)))
    assert len(masks.seen) == 2 + 3 + 3
    assert len({id(mask) for mask in masks.seen}) == 3, "one each for encoder, decoder and cross attention"


def test_the_mask_of_the_encoder_does_not_outlive_it(monkeypatch):
    """generate holds the prefix till its last token; the encoder's mask, the largest of all, must not stay with it."""
    monkeypatch.setattr(attention, "_LONG_QUERY", 1)
    model, inputs = attached(implementation="sdpa"), batch("padding")
    prefix = Additions(random_prefix(model, 3))
    with torch.no_grad(), Masks(keep=weakref.ref) as masks:
        model.encoder(inputs["input_ids"], inputs["attention_mask"], mop_additions=prefix, scenario_ids=IDS)
    assert len(masks.seen) == 2
    assert all(mask() is None for mask in masks.seen)


def test_a_mask_is_made_again_for_other_padding():
    """A caller may give the same bias with other masks, prefixes of another length or another dtype."""
    module = attached().decoder.block[0].layer[0].SelfAttention
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 5, 8, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    masks = [torch.rand(2, 1, 5, 5) < 0.5 for _ in range(2)]
    for length in (3, 2):
        pair = tuple(torch.randn(1, 4, length, 8, dtype=torch.float64) for _ in range(2))
        prefix = Additions({"decoder_self": (pair,)})

        def run(bias, mask, prefix=prefix):
            given = {"mop_additions": prefix, "position_bias": bias, "scaling": 1.0}
            return AttentionInterface()["mop_sdpa"](module, query, key, value, mask, **given)[0]

        for mask in (*masks, None):
            assert torch.equal(run(bias, mask), run(bias.clone(), mask))
            assert torch.equal(run(bias, mask), run(bias, mask))
        assert not torch.equal(run(bias, masks[0]), run(bias, masks[1]))


@pytest.mark.parametrize("way", ["sdpa", "sdpa, long queries", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_trained_position_bias(way, checkpointing, monkeypatch):
    """All layers share one mask, so the gradients of all must come back through it."""
    if way == "sdpa, long queries":
        monkeypatch.setattr(attention, "_LONG_QUERY", 1)
    model, inputs = attached(implementation=way.partition(",")[0], dropout_rate=0.0), batch("padding")
    biases = [p for name, p in model.named_parameters() if "relative_attention_bias" in name]
    assert len(biases) == 2
    for parameter in biases:
        parameter.requires_grad_()
    prefix = random_prefix(model, 3)
    expected = torch.autograd.grad(logits(model, inputs, prefix, IDS).square().sum(), biases)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    got = model(**inputs, scenario_ids=IDS, mop_additions=Additions(prefix)).logits
    got.square().sum().backward()
    for parameter, right in zip(biases, expected, strict=True):
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, right, atol=1e-9, rtol=1e-9)


class NewTensors(TorchDispatchMode):
    """Numbers of elements of what operations write, views of their inputs aside."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.sizes += [t.numel() for t in made if t.untyped_storage().data_ptr() not in given]
        return out


@pytest.mark.parametrize("scenarios", [1, 3])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_decoding_step_copies_no_keys_values_or_prefixes(scenarios, implementation, monkeypatch):
    size, source, prefix_length = 32, 50, 40
    model = attached(implementation=implementation)
    inputs = batch("padding", size, source)
    state = {
        "scenario_ids": torch.arange(size) % scenarios,
        "mop_additions": Additions(random_prefix(model, prefix_length, scenarios)),
    }
    own_prefixes = size * 4 * prefix_length * 8  # of the batch, one layer; its keys are more: 50 tokens

    def largest_of_a_step():
        with torch.no_grad():
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            first = model(**{**inputs, "decoder_input_ids": torch.zeros(size, 1, dtype=torch.long)}, **state)
            encoded = (first.encoder_last_hidden_state,)
            step = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"], **state}
            token = torch.full((size, 1), 3)
            model(decoder_input_ids=token, past_key_values=cache, **step)  # projects the source, once
            with NewTensors() as new:
                model(decoder_input_ids=token, past_key_values=cache, **step)
        return max(new.sizes)

    assert largest_of_a_step() < own_prefixes
    if implementation == "sdpa":
        monkeypatch.setattr(attention, "_LONG_QUERY", 1)
        assert largest_of_a_step() >= own_prefixes, "the fused way copies, which is what this test would see"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [None, torch.tensor([1, 0, 1, 2])])
@pytest.mark.parametrize("queries", [1, 5])
def test_split_and_joined_agree(dtype, rows, queries):
    torch.manual_seed(0)

    def heads(examples, tokens):
        return torch.randn(examples, 3, tokens, 8).to(dtype).requires_grad_()

    examples = 1 if rows is None else 3
    tensors = [heads(4, queries), heads(4, 6), heads(4, 6), heads(examples, 2), heads(examples, 2)]
    mask = torch.randn(4, 3, queries, 8).to(dtype)
    outs = [
        attention.prefixed_attention(*tensors, mask, rows=rows, scaling=0.5, joined=joined)[0]
        for joined in (False, True)
    ]
    grad = torch.randn(outs[0].shape).to(dtype)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.06}[dtype]
    torch.testing.assert_close(*outs, atol=tolerance, rtol=tolerance)
    for got, expected in zip(*(torch.autograd.grad(out, tensors, grad) for out in outs), strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
