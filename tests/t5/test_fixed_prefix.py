"""The method fixed_prefix, as mop_t5.export writes it: bit for bit the generator's prefixes, without kernels."""

import json

import mop_t5
import pytest
import torch
from errors import raises, says
from method_cases import SCENARIOS, SMALL
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus, write_examples
from mop_t5.methods import get
from mop_t5.methods.fixed_prefix import FixedPrefixConfig
from safetensors.torch import load_file
from t5_oracle import batch, tiny

from mop_kernels import available_backends, use_backend

IDS = torch.tensor([0, 2, 1, 2])
CASES = {
    "mop": ("mop", {}),
    "mop in two layers": ("mop", {"layers": [0, 2]}),
    "mop in the encoder": ("mop", {"attention": ["encoder_self"]}),
    "one scenario": ("mop", {"scenarios": ["taxi"]}),
    "one shared expert": ("mop", {"num_experts": 1}),
    "routed": ("mop", {"routing": "xmoe_top2", "num_experts": 4}),
    "no rows": ("mop", {"prefix_length": 0}),
    "prefix_tuning": ("prefix_tuning", {"dropout": 0.5}),
    "hyper_prefix": ("hyper_prefix", {}),
}


def backbone(**options):
    return tiny(**{"d_kv": 6, **options})  # routing needs heads that are as wide together as the model


def attached(case, **options):
    name, fields = CASES[case]
    torch.manual_seed(3)
    model = mop_t5.attach(backbone(**options), name, **{"scenarios": SCENARIOS, **SMALL[name], **fields})
    with torch.no_grad():
        for parameter in model.parameters():  # as if trained, where the backbone is trained, too
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def results(model, ids):
    model.eval()
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs, scenario_ids=ids).logits
    del inputs["decoder_input_ids"]
    return logits, model.generate(**inputs, scenario_ids=ids, num_beams=3, max_new_tokens=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_loaded_prefixes_compute_the_same(case, dtype, tmp_path):
    model = attached(case, dtype=dtype).train()
    made = mop_t5.export(model, tmp_path)
    assert model.mop.training
    assert made.parameters == mop_t5.count_parameters(model).trained
    loaded = mop_t5.load(backbone(dtype=dtype), tmp_path)
    assert loaded.scenarios == model.scenarios
    assert loaded.mop.distinguishes_scenarios is model.mop.distinguishes_scenarios
    ids = IDS if len(model.scenarios) > 1 else torch.zeros(4, dtype=torch.int64)
    for mine, theirs in zip(results(loaded, ids), results(model, ids), strict=True):
        assert torch.equal(mine, theirs)
    additions, expected = loaded.mop.additions(), model.mop.additions()
    for attention, pairs in expected.prefixes.items():
        for pair, wanted in zip(additions.prefixes[attention], pairs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, wanted, strict=True))
    tensors = load_file(tmp_path / "model.safetensors")
    assert made.numbers == sum(t.numel() for t in tensors.values())
    assert not list(loaded.mop.parameters())
    mop_t5.detach(loaded)
    plain = backbone(dtype=dtype).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch()).logits, plain(**batch()).logits)


@pytest.mark.parametrize("case", ["mop", "hyper_prefix"])
def test_a_batch_of_few_scenarios_takes_these_alone(case, tmp_path):
    model = attached(case, dtype=torch.float32)
    # the others generate few prefixes in products of another size than many
    kernels = "cpu" if "cpu" in available_backends() else "reference"
    atol = 0 if (case, kernels) == ("mop", "cpu") else 1e-5
    with use_backend(kernels):
        mop_t5.export(model, tmp_path)
    loaded = mop_t5.load(backbone(dtype=torch.float32), tmp_path)
    every = results(loaded, IDS)[0]
    for ids in (1, [2, 0, 2, 0]):
        logits, beams = results(loaded, ids)
        with use_backend(kernels):
            expected, expected_beams = results(model, ids)
        torch.testing.assert_close(logits, expected, atol=atol, rtol=0)
        assert torch.equal(beams, expected_beams)
    assert len(loaded.mop.additions(torch.tensor([1, 1])).prefix("decoder_self", 0)[0]) == 1
    torch.testing.assert_close(results(loaded, 1)[0][2], every[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(results(loaded, 0)[0][2], every[2], atol=1e-2)


def test_the_numbers_of_the_paper():
    """Five scenarios on T5-pegasus-base: one prefix each in the decoder, one for all in the other attentions."""
    shape = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    rows = {"encoder_self": [1] * 12, "decoder_self": [5] * 12, "cross": [1] * 12}
    mop_t5.attach(shape, "fixed_prefix", scenarios=list("abcde"), rows=rows)
    assert mop_t5.count_parameters(shape).trained == 0
    assert mop_t5.count_parameters(shape).total - mop_t5.count_parameters(shape).backbone == 7 * 12 * 2 * 40 * 768


def test_an_export_is_exported_and_saved_again(tmp_path):
    mop_t5.export(attached("hyper_prefix"), tmp_path / "first")
    loaded = mop_t5.load(backbone(), tmp_path / "first")
    mop_t5.export(loaded, tmp_path / "again")
    mop_t5.save(loaded, tmp_path / "saved")
    first = load_file(tmp_path / "first" / "model.safetensors")
    for folder in ("again", "saved"):
        tensors = load_file(tmp_path / folder / "model.safetensors")
        assert tensors.keys() == first.keys()
        assert all(torch.equal(tensor, first[name]) for name, tensor in tensors.items())
    with raises(ValueError, "method", "export"):
        mop_t5.add_scenario(loaded, "hotel")


def test_loading_imports_no_kernels(tmp_path, forks_with_t5):
    model = attached("mop", dtype=torch.float32)
    mop_t5.export(model, tmp_path / "prefixes")
    mop_t5.detach(model)
    model.save_pretrained(tmp_path / "backbone")
    code = f"""
import sys
sys.modules["mop_kernels"] = None  # importing it would raise
import mop_t5
model = mop_t5.load(mop_t5.load_backbone({str(tmp_path / "backbone")!r}), {str(tmp_path / "prefixes")!r})
model.generate(model.dummy_inputs["input_ids"] % 40, scenario_ids=2, max_new_tokens=2)
print([name for name in sys.modules if name.startswith("mop_t5.methods.") and ".parts" not in name])
"""
    assert forks_with_t5.run(code).splitlines()[-1] == "['mop_t5.methods.fixed_prefix']"


def test_what_cannot_be_exported(tmp_path):
    with raises(RuntimeError, "model", "mop_t5.attach"):
        mop_t5.export(backbone(), tmp_path / "x")
    for name in ("prompt_tuning", "compacter", "fine_tuning"):
        model = mop_t5.attach(backbone(), name, **SMALL[name])
        with raises(ValueError, f"'{name}'", "prefixes"):
            mop_t5.export(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_it_is_only_loaded():
    assert "fixed_prefix" not in mop_t5.methods()
    assert get("fixed_prefix").Config is FixedPrefixConfig
    rows = {"cross": [1, 1, 1]}
    for fields, message in (
        ({}, ("mop_t5.export",)),
        ({"rows": rows}, ("fixed_prefix", "mop_t5.export")),
        ({"rows": {"cross": [1, 1]}}, ("rows", "3 layers", "cross", "2")),
        ({"rows": {"cross": [1, 2, 1]}, "scenarios": SCENARIOS}, ("rows", "0, 1 or 3", "[1, 2, 1]")),
        ({"rows": {"decoder": [1]}}, ("attention", "encoder_self, decoder_self, cross")),
    ):
        model = backbone()
        with raises(ValueError, *message):
            mop_t5.attach(model, "fixed_prefix", **fields)
        assert not mop_t5.is_attached(model)


def test_the_command(tmp_path, capsys):
    corpus = synthetic_corpus(5, general=1, train=20, valid=2, test=6)
    for split in ("train", "test"):
        write_examples(tmp_path / "corpus" / f"{split}.jsonl", corpus[split])
    tokenizer = train_tokenizer([row.dialogue for row in corpus["train"]], 400)
    backbone(dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    options = {key: value for key, value in SMALL["mop"].items() if key != "scenarios"}
    base = ["train", "--corpus", str(tmp_path / "corpus"), "--backbone", str(tmp_path / "backbone"), "--steps", "2"]
    base += ["--batch_size", "2", "--max_target", "8"]
    assert main([*base, "--method", "mop", "--options", json.dumps(options), "--output", str(tmp_path / "mop")]) == 0
    assert main([*base, "--output", str(tmp_path / "all")]) == 0
    capsys.readouterr()
    run, output = str(tmp_path / "mop"), str(tmp_path / "prefixes")
    assert main(["export", "--run", run, "--output", output]) == 0
    count = mop_t5.count_parameters(mop_t5.load(mop_t5.load_backbone(tmp_path / "backbone"), tmp_path / "mop/adapter"))
    said = capsys.readouterr().out
    numbers = 2 * 5 * 24 * (2 + 3 + 3 * 5)  # of five rows: keys and values of encoder, cross and five times decoder
    assert f"{numbers:,} numbers, 0.02 MB, instead of {count.trained:,} parameters" in said
    for folder in (run, output):
        assert main(["evaluate", "--run", folder, "--floors", "false", "--num_beams", "2"]) == 0
    rows = [(tmp_path / name / "evaluation-test/predictions.jsonl").read_text() for name in ("mop", "prefixes")]
    assert rows[0].replace('"mop"', '"fixed_prefix"') == rows[1]
    capsys.readouterr()
    assert main(["export", "--run", run, "--output", output]) == 1
    says(capsys.readouterr().err, "exists", "not empty")
    assert main(["export", "--run", run, "--output", output, "--overwrite"]) == 0
    assert main(["export", "--run", str(tmp_path / "all"), "--output", str(tmp_path / "no")]) == 1
    says(capsys.readouterr().err, "all weights")
