"""What any method may add besides prefixes: adapters after sub-layers, a prompt before the embeddings, a loss."""

import copy
import pickle

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.attachment.additions import PLACES, Additions
from mop_t5.attachment.inject import attach_method
from mop_t5.attachment.method import Method, MethodConfig
from t5_oracle import batch as inputs_of
from t5_oracle import randomised, tiny
from torch import nn

IDS = torch.tensor([0, 2, 1, 2])


def batch():
    """Four padded rows with labels in the place of the decoder's inputs."""
    inputs = inputs_of()
    inputs["labels"] = inputs.pop("decoder_input_ids")
    inputs["labels"][1, 3:] = -100
    inputs["input_ids"] *= inputs["attention_mask"]  # token 0 is padding
    return inputs


class Stranger(Method):
    """A scaled shift of every sub-layer by scenario, a prompt of two rows, and a loss."""

    name, Config = "stranger", MethodConfig
    adapter_places = PLACES

    def __init__(self, shape, prompt=False, loss=False, places=PLACES):
        super().__init__(MethodConfig(scenarios=("a", "b", "c")), shape)
        self.with_loss, self.places = loss, places
        self.shift = nn.Parameter(torch.linspace(-1, 1, 3 * shape.d_model, dtype=torch.float64).view(3, 1, -1))
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.rows = nn.Parameter(torch.linspace(-2, 2, 2 * shape.d_model, dtype=torch.float64).view(2, -1))
        self.with_prompt = prompt

    @property
    def distinguishes_scenarios(self):
        return True

    def _adapt(self, hidden, scenario_ids):
        return hidden * self.scale + self.shift[scenario_ids]

    def _prompt(self, embeddings, mask, scenario_ids):
        return torch.cat([self.rows.expand(len(embeddings), -1, -1), embeddings], 1)

    def additions(self, scenario_ids=None):
        depth = {"encoder": self.shape.num_layers, "decoder": self.shape.num_decoder_layers}
        return Additions(
            prompt=self._prompt if self.with_prompt else None,
            adapters={place: (None,) * (depth[place[0]] - 1) + (self._adapt,) for place in self.places},
            loss=self.scale.square() if self.with_loss else None,
        )


def stranger(model, **options):
    return attach_method(model, Stranger(mop_t5.backbone.load.BackboneShape.of(model), **options))


def by_hand(model, method, inputs, places):
    """The same shifts by replacing what the last block's sub-layers compute, on a plain model."""
    handles = []

    def changed(module, args, output):
        if isinstance(output, tuple):
            return (method._adapt(output[0], IDS), *output[1:])
        return method._adapt(output, IDS)

    last = {"encoder": model.encoder.block[-1], "decoder": model.decoder.block[-1]}
    for stack, place in places:
        module = {
            "self_attention": last[stack].layer[0].SelfAttention,
            "cross_attention": getattr(last[stack].layer[1], "EncDecAttention", None),
            "feed_forward": last[stack].layer[-1].DenseReluDense,
        }[place]
        handles.append(module.register_forward_hook(changed))
    logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("places", [*((p,) for p in PLACES), PLACES], ids=lambda p: "+".join("-".join(q) for q in p))
def test_adapters_change_the_output_of_their_sub_layer(places):
    inputs, plain = batch(), tiny()
    model = stranger(tiny(), places=places)
    torch.testing.assert_close(
        model(**inputs, scenario_ids=IDS).logits, by_hand(plain, model.mop, inputs, places), atol=1e-12, rtol=1e-10
    )


def test_detach_removes_the_hooks_of_the_model_and_of_a_copy():
    inputs, plain = batch(), tiny()
    expected = plain(**inputs).logits
    model = stranger(tiny())
    attached = model(**inputs, scenario_ids=IDS).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**inputs, scenario_ids=IDS).logits, attached)
        mop_t5.detach(twin)
        assert torch.equal(twin(**inputs).logits, expected)
        assert hooked(twin) == []
    assert torch.equal(model(**inputs, scenario_ids=IDS).logits, attached), "the copy's hooks are its own"
    assert torch.equal(mop_t5.detach(model)(**inputs).logits, expected)


def hooked(model):
    return [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def test_detach_reaches_layers_that_were_copied():
    inputs, model = batch(), mop_t5.attach(tiny(), "bitfit")
    randomised(model.mop)
    expected, plain = model(**inputs).logits, tiny()(**inputs).logits
    for stack in (model.encoder, model.decoder):
        stack.block[1] = copy.deepcopy(stack.block[1])
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(mop_t5.detach(model)(**inputs).logits, plain)
    assert hooked(model) == []


@pytest.mark.parametrize("place", ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.2.layer.2", "lm_head"])
def test_a_layer_that_was_replaced_is_noticed(place):
    """Its hook is gone; a layer that has the old one inside, as of LoRA, is as good as the old one."""
    inputs, model = batch(), mop_t5.attach(tiny(), "bitfit")
    randomised(model.mop)
    expected, old = model(**inputs).logits, model.get_submodule(place)
    if place.endswith(("q", "lm_head")):
        model.set_submodule(place, torch.nn.Sequential(old))
        torch.testing.assert_close(model(**inputs).logits, expected, atol=0, rtol=0)
    model.set_submodule(place, tiny().get_submodule(place))
    for call in (lambda: model(**inputs), lambda: model.generate(inputs["input_ids"], max_new_tokens=2)):
        with raises(RuntimeError, "replaced", "after attach", "mop_t5.detach"):
            call()
    mop_t5.detach(model)
    assert torch.equal(model(**inputs).logits, tiny()(**inputs).logits)


@torch.no_grad()
def test_a_forward_inside_a_forward_leaves_it_alone():
    """A hook of the user calls another attached model, or the same one, and some of these calls fail half way."""
    inputs, model, other = batch(), stranger(tiny()), mop_t5.attach(tiny(seed=1), "bitfit")
    randomised(other.mop)
    expected, others = model(**inputs, scenario_ids=IDS).logits, other(**inputs).logits
    flipped = model(**inputs, scenario_ids=IDS.flip(0)).logits
    searched = other.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False)
    running = []

    def meanwhile(*_):
        if running:
            return
        running.append(1)
        assert torch.equal(other(**inputs).logits, others)
        assert torch.equal(other.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False), searched)
        assert torch.equal(model(**inputs, scenario_ids=IDS.flip(0)).logits, flipped)
        failing = other.encoder.block[0].layer[0].SelfAttention.o.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            other(**inputs)
        failing.remove()
        running.clear()

    for stack in (model.encoder, model.decoder):
        stack.block[1].layer[0].SelfAttention.q.register_forward_pre_hook(meanwhile)
        stack.block[1].layer[-1].DenseReluDense.register_forward_pre_hook(meanwhile)
    model.lm_head.register_forward_pre_hook(meanwhile)
    assert torch.equal(model(**inputs, scenario_ids=IDS).logits, expected)


def test_two_forwards_before_a_backward_and_checkpointing_see_their_own_scenarios():
    inputs = batch()

    def gradients(checkpointing):
        model = stranger(tiny(dropout_rate=0.0))
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        first = model(**inputs, scenario_ids=IDS).loss
        second = model(**inputs, scenario_ids=IDS.flip(0)).loss
        (first + 3 * second).backward()
        return model.mop.shift.grad

    torch.testing.assert_close(gradients(True), gradients(False), atol=1e-12, rtol=1e-9)


def test_a_prompt_is_what_longer_embeddings_would_be():
    inputs, plain = batch(), tiny(num_decoder_layers=2)  # transformers alone cannot generate with a deeper decoder
    model = stranger(tiny(num_decoder_layers=2), prompt=True, places=())
    embeddings = plain.get_input_embeddings()(inputs["input_ids"])
    longer = {
        "inputs_embeds": torch.cat([model.mop.rows.expand(4, -1, -1), embeddings], 1),
        "attention_mask": torch.cat([torch.ones(4, 2, dtype=torch.long), inputs["attention_mask"]], 1),
    }
    got, expected = model(**inputs, scenario_ids=IDS), plain(**longer, labels=inputs["labels"])
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-12, rtol=1e-10)
    assert got.encoder_last_hidden_state.shape[1] == inputs["input_ids"].shape[1] + 2
    positional = model(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"], scenario_ids=IDS)
    assert torch.equal(positional.logits, got.logits)
    for options in ({}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        options |= {"max_new_tokens": 6, "do_sample": False}
        asked = {"attention_mask": inputs["attention_mask"], "scenario_ids": IDS}
        tokens = model.generate(inputs["input_ids"], **asked, **options)
        assert torch.equal(tokens, plain.generate(**longer, **options))
        # padding is found where no mask is given, as transformers does
        assert torch.equal(model.generate(inputs["input_ids"], scenario_ids=IDS, **options), tokens)
    encoded = model.encoder(**longer, scenario_ids=IDS, mop_additions=model.mop.additions(IDS))
    again = model(
        encoder_outputs=encoded,
        attention_mask=longer["attention_mask"],
        labels=inputs["labels"],
        scenario_ids=IDS,
    )
    torch.testing.assert_close(again.loss, got.loss, atol=1e-12, rtol=1e-10)
    with raises(ValueError, "input_ids", "inputs_embeds", "both or none"):
        model(**inputs, inputs_embeds=embeddings, scenario_ids=IDS)
    with raises(ValueError, "attention_mask", "(batch, source)", "(4, 1"):
        model(inputs["input_ids"], torch.ones(4, 1, 7), labels=inputs["labels"], scenario_ids=IDS)


def test_the_loss_of_a_method_is_added_in_training_only():
    inputs = batch()
    model = stranger(tiny(dropout_rate=0.0), loss=True)
    without = model(**inputs, scenario_ids=IDS)
    model.train()
    output = model(**inputs, scenario_ids=IDS)
    torch.testing.assert_close(output.loss, without.loss + 0.25)
    torch.testing.assert_close(model(**inputs, scenario_ids=IDS, return_dict=False)[0], without.loss + 0.25)
    shared = model(**inputs, scenario_ids=IDS, num_items_in_batch=2 * int(inputs["labels"].ne(-100).sum()))
    torch.testing.assert_close(shared.loss, output.loss / 2)
    labels = inputs.pop("labels")
    decoder = {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
    alone = model(**inputs, **decoder, scenario_ids=IDS)
    torch.testing.assert_close(alone.loss, torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(alone.logits, output.logits)


def test_a_compiled_forward_is_one_graph():
    inputs = batch()
    model = stranger(tiny(num_layers=1, num_decoder_layers=1), prompt=True)
    expected = model(**inputs, scenario_ids=IDS).logits
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs, scenario_ids=IDS).logits, expected)


def test_a_bfloat16_backbone_gets_its_own_dtype_back():
    inputs, model = batch(), tiny().bfloat16()
    method = Stranger(mop_t5.backbone.load.BackboneShape.of(model), prompt=True).float()
    seen = []
    adapt = method._adapt
    method._adapt = lambda hidden, ids: seen.append(hidden.dtype) or adapt(hidden, ids)
    logits = attach_method(model, method)(**inputs, scenario_ids=IDS).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert set(seen) == {torch.float32}


def test_sub_layers_called_without_additions_are_refused():
    model = stranger(tiny(), places=())
    with raises(RuntimeError, "feed_forward", "encoder layer 0", "mop_additions"):
        model.encoder.block[0].layer[-1](torch.zeros(1, 2, model.config.d_model, dtype=torch.float64))
    with raises(ValueError, "adapters", "('encoder', 'cross_attention')"):
        Additions(adapters={("encoder", "cross_attention"): ()})
