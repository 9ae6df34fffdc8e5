"""Embeddings, head and trained weights of a model that has a method attached: they stay, or a call says why not."""

import copy
from contextlib import nullcontext

import mop_t5
import pytest
import torch
import transformers
from errors import raises, warns
from packaging.version import Version
from t5_oracle import KINDS, batch, tiny
from transformers import AutoModelForSeq2SeqLM


def attach(model):
    sizes = {"prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4}
    return mop_t5.attach(model, "mop", scenarios=["a", "b", "c"], **sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_its_own_stays(kind, tmp_path):
    """As transformers loads it, nothing says that it is not tied. Trainer ties weights when it loads a checkpoint."""
    tiny(kind, tie_word_embeddings=False, dtype=torch.float32).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    plain, config = model(**batch()).logits, model.config.to_dict()
    head = model.lm_head.weight
    assert head is not model.shared.weight
    scaled = kind == "umt5" and Version(transformers.__version__).release < (5, 24)
    with warns(UserWarning, "umT5", "head", "transformers") if scaled else nullcontext():
        mop_t5.attach(model, "bitfit")
    model.tie_weights()
    assert model.lm_head.weight is head
    assert torch.equal(model(**batch()).logits, plain)
    mop_t5.detach(model)
    assert model.lm_head.weight is head
    assert model.config.to_dict() == config
    tied = attach(tiny())
    tied.lm_head.weight = torch.nn.Parameter(tied.shared.weight.clone())
    tied.lm_head.weight = tied.shared.weight
    tied.tie_weights()
    assert tied.lm_head.weight is tied.shared.weight


def test_embeddings_keep_their_size():
    model = attach(tiny())
    embeddings = model.shared
    assert model.resize_token_embeddings(40) is embeddings is model.resize_token_embeddings(None, 8)
    for size in ((41,), (39,), (40, 16)):
        with raises(RuntimeError, "40 rows", "mop_t5.detach"):
            model.resize_token_embeddings(*size)
    assert model.shared is embeddings
    mop_t5.detach(model).resize_token_embeddings(48)
    attach(model)
    assert model(input_ids=torch.tensor([[47]]), labels=torch.tensor([[47]]), scenario_ids=0).logits.shape[-1] == 48


def test_embeddings_and_head_are_not_replaced():
    model = attach(tiny())
    for replace in (model.set_input_embeddings, model.set_output_embeddings):
        with raises(RuntimeError, "mop_t5.detach"):
            replace(torch.nn.Embedding(40, 24))
    mop_t5.detach(model).set_input_embeddings(torch.nn.Embedding(40, 24))


def test_weights_of_an_untied_head_are_not_loaded_into_a_tied_one():
    """torch says that all keys match, and the head overwrites the embeddings."""
    untied, tied = attach(tiny(tie_word_embeddings=False)), attach(tiny())
    before = tied.shared.weight.clone()
    with raises(ValueError, "lm_head.weight", "tie_word_embeddings=False"):
        tied.load_state_dict(untied.state_dict())
    assert torch.equal(tied.shared.weight, before)
    for model in (tied, untied):
        other = attach(tiny(seed=5, tie_word_embeddings=model is tied))
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        inputs = batch("padding") | {"scenario_ids": torch.tensor([0, 2, 0, 2])}
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)


def test_weights_that_the_method_trains_are_saved_or_missed(tmp_path):
    model = mop_t5.attach(tiny(), "fine_tuning")
    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", torch.nn.Identity())
    torch.nn.utils.parametrize.register_parametrization(
        model.encoder.block[0].layer[0].SelfAttention.q, "weight", torch.nn.Identity()
    )
    with raises(ValueError, "encoder.block.0.layer.0.SelfAttention.q.weight"):
        mop_t5.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
