"""Calls on a model in a wrapper see the T5 inside; calls that change a model name the wrapper."""

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Example
from mop_t5.evaluation import generate_summaries
from mop_t5.evaluation.generation import scenarios_needed, source_lengths
from mop_t5.training import TrainingConfig, train
from t5_oracle import tiny


class Lora(torch.nn.Module):
    """As peft wraps a model in whose layers it has put adapters: PeftModel(base_model=LoraModel(model=the T5))."""

    def __init__(self, model):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model, self.base_model.peft_config = model, {}


WRAPPERS = {
    "lora": Lora,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "data parallel": torch.nn.DataParallel,
    "average": torch.optim.swa_utils.AveragedModel,
    "both": lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
}
TEXTS = ["用户：你好。", "用户：司机绕路。", "taxi food Scenario: "]


@pytest.fixture(params=WRAPPERS.values(), ids=WRAPPERS)
def wrap(request):
    return request.param


def test_what_reads_a_model_looks_inside(wrap, tmp_path):
    model = mop_t5.attach(tiny(), "prefix_tuning", prefix_length=2, d_mid=4, scenarios=["taxi", "food"])
    wrapped = wrap(model)
    assert mop_t5.is_attached(wrapped)
    assert mop_t5.count_parameters(wrapped) == mop_t5.count_parameters(model)
    assert torch.equal(mop_t5.scenario_ids(wrapped, ["food", "taxi"]), torch.tensor([1, 0]))
    assert mop_t5.scenarios(wrapped) == ("taxi", "food")
    for write in (mop_t5.save, mop_t5.export):
        write(model, tmp_path / "plain")
        write(wrapped, tmp_path / "wrapped")
        for name in ("model.safetensors", "mop_config.json"):
            assert (tmp_path / "wrapped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_plain_model_counts_as_plain(wrap):
    plain = tiny()
    assert not mop_t5.is_attached(wrap(plain))
    assert mop_t5.count_parameters(wrap(plain)) == mop_t5.count_parameters(plain)
    assert mop_t5.count_parameters(torch.nn.Linear(2, 3)).total == 9


def test_summaries_have_the_template_of_the_method(wrap):
    tokenizer = train_tokenizer(TEXTS * 5, vocab_size=330)
    model = mop_t5.attach(
        tiny(vocab_size=len(tokenizer), num_decoder_layers=2),
        "fine_tuning",
        scenarios=["taxi"],
        templates="Scenario {scenario}: ",
    )
    rows = [Example("taxi", TEXTS[0], "", "1")]
    with torch.no_grad():
        model.shared.weight.mul_(3)
    expected = generate_summaries(model, tokenizer, rows, max_new_tokens=5)
    assert generate_summaries(mop_t5.detach(model), tokenizer, rows, max_new_tokens=5) != expected
    mop_t5.attach(model, "fine_tuning", scenarios=["taxi"], templates="Scenario {scenario}: ")
    with torch.no_grad():
        model.shared.weight.mul_(3)
    assert generate_summaries(wrap(model), tokenizer, rows, max_new_tokens=5) == expected
    length = len(tokenizer(TEXTS[0])["input_ids"])
    assert source_lengths(wrap(model), tokenizer, rows, length) == [length + 1]
    several = mop_t5.attach(tiny(), "adapter", scenarios=["a", "b"], per_scenario=True, reduction=4)
    assert scenarios_needed(wrap(several)) == ("a", "b")


def test_what_changes_a_model_names_the_wrapper(wrap, tmp_path):
    model = mop_t5.attach(tiny(), "adapter", scenarios=["a", "b"], per_scenario=True, reduction=4)
    mop_t5.save(model, tmp_path)
    wrapped = wrap(model)
    calls = [
        lambda: mop_t5.detach(wrapped),
        lambda: mop_t5.add_scenario(wrapped, "c"),
        lambda: mop_t5.remove_scenario(wrapped, "b"),
        lambda: mop_t5.train_only(wrapped, ["a"]),
        lambda: mop_t5.attach(wrap(tiny()), "bitfit"),
        lambda: mop_t5.load(wrap(tiny()), tmp_path),
        lambda: train(wrapped, None, [], TrainingConfig(steps=1), output=tmp_path),
    ]
    for call in calls:
        with raises(TypeError, "model", type(wrapped).__name__, "T5"):
            call()
    assert model.scenarios == ("a", "b")
