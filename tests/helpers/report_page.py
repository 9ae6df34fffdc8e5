"""A finished suite, and a parser of the page of `mop-t5 report` with what holds of every page."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from mop_t5.cli.main import main
from t5_fixtures import make_place

SUITE = ["--systems", "[MTL-vanilla, prefix-tuning]", "--seeds", "[0, 1]", "--steps", "2", "--batch_size", "2"]
SUITE += ["--max_target", "8", "--log_every", "1", "--options", '{"prefix_length": 2, "d_mid": 4}']
VOID = {"meta", "img", "input", "link", "br"}


@pytest.fixture(scope="session")
def suite_place(tmp_path_factory):
    """A folder with a corpus, a backbone, and `suite`: a finished suite of two systems and two seeds."""
    place = make_place(tmp_path_factory.mktemp("suites"))
    base = ["--corpus", str(place / "corpus"), "--backbone", str(place / "backbone")]
    assert main(["table", "2", *base, *SUITE, "--output", str(place / "suite")]) == 0
    return place


@pytest.fixture(scope="module")
def suite_copy(suite_place, tmp_path_factory):
    """A copy of the suite for one module."""
    return copy_of(suite_place / "suite", tmp_path_factory.mktemp("suite"), "suite")


def evaluations(suite, system):
    return [suite / "runs" / system / f"seed-{seed}" / "evaluation-test" for seed in (0, 1)]


def copy_of(suite, folder, name="copy"):
    return Path(shutil.copytree(suite, folder / name))


def rewrite(path, change):
    """Change the rows of a file of JSON lines, or the object in a file of JSON."""
    lines = path.suffix == ".jsonl"
    content = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    change(content)
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))


class Page(HTMLParser):
    """Elements as (tag, attributes), the text of each kind of element, and the rows of the tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.rows = [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((dict(attributes), ""))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag  # every element is closed where it should be

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            attributes, text = self.rows[-1][-1]
            self.rows[-1][-1] = (attributes, text + data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self):
        return json.loads(next(t for t, a in zip(self.texts["script"], self.all("script")) if a.get("id") == "data"))

    def row(self, label):
        return next(row for row in self.rows if row[0][1] == label)


def check_structure(page):
    """What holds of every page."""
    assert len(page.all("h1")) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert {"#overview", "#scenarios", "#configurations", "#predictions"} <= set(links)
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    labelled = {attributes.get("for") for attributes in page.all("label")}
    assert {a["id"] for a in page.all("input") + page.all("select")} <= labelled
    assert all(attributes["alt"].startswith("Plot ") for attributes in page.all("img"))
    # nothing from elsewhere: no address but those of this page and its data, no script but its own
    for _, attributes in page.elements:
        for name in {"src", "href", "srcset", "action", "poster", "style"} & set(attributes):
            assert attributes[name].startswith(("#", "data:image/")), attributes
        assert not any(name.startswith("on") for name in attributes)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    assert not re.search(r"url\(|@import", page.texts["style"][0])
    assert [attributes.get("type") for attributes in page.all("script")] == ["application/json", None]
    own = page.texts["script"][1]
    assert not re.search(r"https?:|fetch|XMLHttp|innerHTML|import\(", own)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert "JavaScript" in page.texts["noscript"][0]
