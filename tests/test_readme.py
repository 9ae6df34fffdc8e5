"""What the README shows is run: its Python as it stands, its commands by name."""

import re
import shlex
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_formula_is_what_the_kernels_compute():
    import mop_kernels as mk

    names = {"torch": torch, "terms": 3, "x": torch.randn(5, 8), "b": torch.randn(12)}
    names |= {"rule_in": torch.randn(3, 4, 2), "rule_out": torch.randn(3, 2, 6), "local": torch.randn(3, 2, 2)}
    exec(BLOCKS[0], names)
    y = mk.lowrank_phm_linear(names["x"], names["rule_in"], names["rule_out"], names["local"], names["b"])
    torch.testing.assert_close(y, names["y"], rtol=1e-4, atol=1e-4)


def test_the_layers(capsys):
    names = {}
    exec(BLOCKS[1], names)
    assert names["y"].shape == (32, 768)
    assert names["keys"].shape == names["values"].shape == (12, 5, 40, 768)


def test_the_frozen_t5(tmp_path, monkeypatch):
    mop_t5 = pytest.importorskip("mop_t5")
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=50, d_model=128, d_kv=64, d_ff=64, num_layers=1, num_heads=2)
    backbone = mop_t5.build_backbone(config)
    plain = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    monkeypatch.setattr(mop_t5, "load_backbone", lambda path: backbone)
    monkeypatch.chdir(tmp_path)
    names = {"inputs": torch.randint(2, 50, (2, 7)), "labels": torch.randint(2, 50, (2, 4))}
    exec(BLOCKS[2], names)
    assert (tmp_path / "adapter" / "model.safetensors").is_file()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in names["model"].state_dict().items())


def test_the_commands_exist():
    cli = pytest.importorskip("mop_t5.cli.main")
    commands = pytest.importorskip("mop_t5.cli.commands")
    shown = [shlex.split(line) for line in re.findall(r"^ {4}mop-t5 (.*)$", README, re.MULTILINE)]
    assert {words[0] for words in shown} <= set(commands.all_commands())
    assert cli.main(["params", "--backbone", "t5-pegasus-base"]) == 0
    targets = set(re.findall(r"^ {4}make (\w+)", README, re.MULTILINE))
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
