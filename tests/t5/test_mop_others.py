"""MOP with others="none": no prefix where MOP is not named, in the model, in its sizes, saved and exported."""

from dataclasses import asdict

import mop_t5
import pytest
import torch
from method_cases import SCENARIOS, SMALL, backbone
from mop_lab.analysis.prefixes import prefixes_of
from mop_t5.attachment.additions import ATTENTIONS
from mop_t5.methods.mop.config import MOPConfig
from mop_t5.operations.run_folder import check_resumable, write_settings
from mop_t5.training import TrainingConfig
from t5_oracle import batch

IDS = torch.tensor([0, 2, 1, 2])
CASES = {
    "decoder": {},
    "one layer": {"layers": [1]},
    "cross": {"attention": ["cross"], "layers": [0]},
    "encoder": {"attention": ["encoder_self"]},
    "routed": {"routing": "xmoe_top2", "num_experts": 4, "init": "compacter"},
}


def attached(case, others="none", **fields):
    torch.manual_seed(3)
    model = mop_t5.attach(backbone(), "mop", **{**SMALL["mop"], **CASES[case], "others": others, **fields})
    with torch.no_grad():
        for parameter in model.mop.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def logits(model, **inputs):
    with torch.no_grad():
        return model(**batch(), scenario_ids=IDS, **inputs).logits


@pytest.mark.parametrize("case", CASES)
def test_only_named_layers_have_a_prefix(case):
    model, every = attached(case), attached(case, "mlp")
    mop, prefixes = model.mop, model.mop.additions().prefixes
    named = {a: mop.config.mop_layers(a, mop.shape) for a in ATTENTIONS}
    assert set(prefixes) == {a for a, layers in named.items() if layers}
    for attention, pairs in prefixes.items():
        assert [layer for layer, pair in enumerate(pairs) if pair is not None] == list(named[attention])
    # with the experts of the same values, a model whose other prefixes are taken away is the same model
    mop.load_state_dict({name: tensor for name, tensor in every.mop.state_dict().items() if name in mop.state_dict()})
    additions = every.mop.additions()
    for attention in ATTENTIONS:
        pairs = additions.prefixes[attention]
        additions.prefixes[attention] = [p if i in named[attention] else None for i, p in enumerate(pairs)]
    assert torch.equal(logits(model), logits(every, mop_additions=additions))
    assert not torch.equal(logits(model), logits(every))


@pytest.mark.parametrize("case", CASES)
def test_nothing_else_is_counted_or_trained(case):
    model = attached(case)
    model(**batch(), labels=batch()["decoder_input_ids"], scenario_ids=IDS).loss.backward()
    groups = model.mop.parameter_groups()
    assert groups["generators"] == []
    assert sum(p.numel() for group in groups.values() for p in group) == mop_t5.count_parameters(model).trained
    assert mop_t5.count_parameters(model).trained < mop_t5.count_parameters(attached(case, "mlp")).trained
    assert all(p.grad is not None for p in model.mop.parameters())


@pytest.mark.parametrize("case", CASES)
def test_saved_exported_and_generated(case, tmp_path):
    model = attached(case)
    expected = logits(model)
    inputs = {name: tensor for name, tensor in batch().items() if name != "decoder_input_ids"}
    summaries = model.generate(**inputs, scenario_ids=IDS, num_beams=2, max_new_tokens=4)
    mop_t5.save(model, tmp_path / "saved")
    mop_t5.export(model, tmp_path / "exported")
    for folder, method in (("saved", "mop"), ("exported", "fixed_prefix")):
        loaded = mop_t5.load(backbone(), tmp_path / folder).eval()
        assert loaded.mop.name == method
        assert torch.equal(logits(loaded), expected)
        assert torch.equal(loaded.generate(**inputs, scenario_ids=IDS, num_beams=2, max_new_tokens=4), summaries)


def test_analysis_of_prefixes_names_the_layers_that_have_them():
    model = attached("one layer")
    assert set(prefixes_of(model, "decoder_self", "run").layer) == {1}
    with pytest.raises(ValueError, match="cross"):
        prefixes_of(model, "cross", "run")


def test_a_layer_is_added_to_all_scenarios():
    model = attached("one layer")
    mop_t5.add_scenario(model, "hotel", like="taxi")
    pairs = model.mop.additions().prefixes["decoder_self"]
    assert pairs[0] is None
    assert len(pairs[1][0]) == len(SCENARIOS) + 1


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    """run.json of a run without the new settings stands for their defaults."""
    config = MOPConfig(scenarios=SCENARIOS)
    settings = {"method": "mop", "options": config.to_dict(), **asdict(TrainingConfig())}
    earlier = {name: value for name, value in settings.items() if not name.startswith("cache_")}
    earlier["options"] = {name: value for name, value in settings["options"].items() if name != "others"}
    write_settings(tmp_path, earlier)
    check_resumable(tmp_path, settings)
    for field, value in (("others", "none"), ("d_mid", 64)):
        with pytest.raises(ValueError, match=f"'{field}': '?{value}"):
            check_resumable(tmp_path, settings | {"options": settings["options"] | {field: value}})
    with pytest.raises(ValueError, match="cache_encoder was 'no', now 'memory'"):
        check_resumable(tmp_path, settings | {"cache_encoder": "memory"})


def test_the_field_is_checked():
    assert MOPConfig(scenarios=SCENARIOS).others == "mlp"
    with pytest.raises(ValueError, match=r"others.*'zero'"):
        MOPConfig(scenarios=SCENARIOS, others="zero")


@pytest.mark.parametrize(("fields", "trained"), [({}, 1_900_416), ({"preset": "xmoe_top2"}, 614_720)])
def test_size_on_t5_pegasus(fields, trained):
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    mop_t5.attach(model, "mop", scenarios=list("abcde"), others="none", **fields)
    assert mop_t5.count_parameters(model).trained == trained
