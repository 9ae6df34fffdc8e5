"""The model card of an adapter folder: what it says, when it is written, and that nothing depends on it."""

import json

import mop_t5
import pytest
import torch
from errors import raises
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt
from mop_t5.storage import adapter_folder, model_card
from t5_oracle import tiny

FIELDS = {"scenarios": ["taxi", "打车"], "prefix_length": 2, "d_mid": 4, "terms_down": 2, "terms_up": 2}


def attached(name="google/mt5-small", seed=1, **fields):
    model = tiny(dtype=torch.float32)
    model.config._name_or_path = name
    torch.manual_seed(seed)
    return mop_t5.attach(model, "mop", **{**FIELDS, **fields})


def tables(text):
    """The cells of all tables of a page, as a reader sees them: one dict of first cell -> other cells."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found, row = {}, None
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "inline" and row is not None:
            row.append("".join(child.content for child in token.children))
        elif token.type == "tr_close":
            found[row[0]], row = row[1:], None
    return found


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_what_a_card_says(tmp_path):
    model = attached()
    mop_t5.save(model, tmp_path)
    description = json.loads((tmp_path / "mop_config.json").read_text())
    assert metadata_load(tmp_path / "README.md") == {
        "base_model": "google/mt5-small",
        "library_name": "mop_t5",
        "tags": ["mop_t5", "mop", "t5"],
        "base_model_relation": "adapter",
    }
    cells = tables(card_of(tmp_path))
    assert cells["method"] == ["mop"]
    assert cells["scenarios"] == ["taxi, 打车"]
    assert cells["parameters"] == [f"{mop_t5.count_parameters(model).trained:,}"]
    assert cells["SHA-256 of its weights"] == [description["backbone"]["sha256"]]
    assert cells["name"] == ["google/mt5-small"]
    assert {name: cells[name] for name in description["backbone"]["shape"]} == {
        name: [str(value)] for name, value in description["backbone"]["shape"].items()
    }
    options = {name: value for name, value in description["config"].items() if name != "scenarios"}
    assert {name: cells[name] for name in options} == {name: [str(value)] for name, value in options.items()}


@pytest.mark.parametrize("name", [None, "my-folder", "a/b/c", "/gone/a/my-folder"])
def test_a_backbone_of_this_machine_is_no_base_model(tmp_path, name):
    mop_t5.save(attached(name), tmp_path)
    assert not {"base_model", "base_model_relation"} & metadata_load(tmp_path / "README.md").keys()
    assert "gone" not in (tmp_path / "README.md").read_text() + (tmp_path / "mop_config.json").read_text()


def test_the_same_adapter_has_the_same_card(tmp_path):
    for folder in ("a", "b"):
        mop_t5.save(attached(), tmp_path / folder)
    assert (tmp_path / "a" / "README.md").read_bytes() == (tmp_path / "b" / "README.md").read_bytes()
    mop_t5.save(mop_t5.load(tiny(dtype=torch.float32), tmp_path / "a"), tmp_path / "c")
    assert tables(card_of(tmp_path / "c"))["parameters"] == tables(card_of(tmp_path / "a"))["parameters"]


def test_loading_does_not_read_the_card(tmp_path):
    mop_t5.save(attached(), tmp_path)
    for content in (b"\xff", b""):
        (tmp_path / "README.md").write_bytes(content)
        mop_t5.load(tiny(dtype=torch.float32), tmp_path)
    (tmp_path / "README.md").unlink()
    mop_t5.load(tiny(dtype=torch.float32), tmp_path)


def test_a_card_of_ones_own_stays(tmp_path):
    """Written by hand, or written by us and then changed in a letter, at its end, or by other line breaks."""
    mop_t5.save(attached(), tmp_path)
    made = (tmp_path / "README.md").read_bytes()
    changed = [
        b"# Mine\n",
        b"",
        made.replace(b"frozen", b"FROZEN", 1),
        made + b"More.\n",
        made.replace(b"\n", b"\r\n"),
        made.rpartition(b"<!--")[0],
    ]
    for content in changed:
        (tmp_path / "README.md").write_bytes(content)
        mop_t5.save(attached(prefix_length=3), tmp_path)
        assert (tmp_path / "README.md").read_bytes() == content
        assert not adapter_folder.write_card(tmp_path, licence="mit")
        assert (tmp_path / "README.md").read_bytes() == content
    assert mop_t5.load(tiny(dtype=torch.float32), tmp_path).mop.config.prefix_length == 3


def test_a_card_of_ours_follows_the_adapter(tmp_path):
    mop_t5.save(attached(), tmp_path)
    mop_t5.save(attached(prefix_length=3), tmp_path)
    assert tables(card_of(tmp_path))["prefix_length"] == ["3"]
    assert adapter_folder.write_card(tmp_path, licence="apache-2.0", sections="\n## More\n\nText.\n")
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"
    assert "## More" in card_of(tmp_path)
    mop_t5.save(attached(), tmp_path)  # still ours
    assert "## More" not in card_of(tmp_path)


def test_hostile_texts(tmp_path):
    """Names of scenarios and texts of options stay in their cells, and are no HTML, no link and no metadata."""
    names = ["a|b", "`code`", "``", "<script>x</script>", "[a](http://b)", "**", "---\nlicense: mit\n---", "\\"]
    mop_t5.save(attached(scenarios=names), tmp_path)
    text = card_of(tmp_path)
    expected = ", ".join(" ".join(name.split()) for name in names)
    assert tables(text)["scenarios"] == [expected]
    kinds = {child.type for t in MarkdownIt("commonmark").enable("table").parse(text) for child in t.children or ()}
    assert kinds <= {"text", "code_inline", "softbreak"}
    assert "license" not in metadata_load(tmp_path / "README.md")


def test_folders_of_this_machine_are_private(tmp_path):
    config = {"scenarios": [], "init_file": "/home/me/prompt", "deep": {"a": ["/home/me/b/", "c/d"]}, "n": 1}
    assert model_card.without_folders(config) == {
        "scenarios": [],
        "init_file": "prompt",
        "deep": {"a": ["b", "c/d"]},
        "n": 1,
    }


@pytest.mark.parametrize("licence", ["", "Apache 2.0", "mit\nlibrary_name: x", "MIT", "-", "ａ"])
def test_a_licence_that_is_no_name(tmp_path, licence):
    mop_t5.save(attached(), tmp_path)
    before = card_of(tmp_path)
    with raises(ValueError, "licence", repr(licence)):
        adapter_folder.write_card(tmp_path, licence=licence)
    with raises(TypeError, "licence", "5"):
        adapter_folder.write_card(tmp_path, licence=5)
    assert card_of(tmp_path) == before
