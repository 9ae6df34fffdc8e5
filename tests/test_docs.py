"""The code blocks of README.md and docs/ run, and the links between the pages lead somewhere.

A page has one folder and one namespace for all of its blocks. The folder holds a tiny backbone under the name
`google/mt5-small` and a corpus under the name `dialogues`. The language of a block says what is done with it:

    python  The block runs. Numbers of training steps are cut to 2. `<!-- not run: REASON -->` before it leaves it out.
    bash    Every command exists and its flags are valid. `<!-- run -->` before the block runs its mop-t5 commands.
    yaml    `<!-- file: NAME -->` before the block writes it into the folder, for the commands of the page.
    text    Nothing.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt
from mop_lab.suites import systems

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "findings/README.md",
]
LANGUAGES = {"python", "bash", "yaml", "json", "text"}
OTHER_PROGRAMS = {"pip", "uv", "git", "cd", "tail", "consumer", "mkdocs", "pre-commit", "curl", "locust"}
TESTS = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
}
BACKBONE, CORPUS = "google/mt5-small", "dialogues"


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of its first line of code, from 1
    remark: str  # the HTML comment on the line before


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def tokens_of(page: Path):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks_of(page: Path) -> list[Block]:
    found, before = [], None
    for token in tokens_of(page):
        if token.type in ("fence", "code_block"):
            remark = before.content.strip() if before is not None and before.type == "html_block" else ""
            found.append(Block(token.info.strip(), token.content, token.map[0] + 2, remark))
        before = token
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the backbone and the corpus that the pages name."""
    mop_t5 = pytest.importorskip("mop_t5")
    transformers = pytest.importorskip("transformers")
    from mop_t5.backbone.tokenizer import train_tokenizer
    from mop_t5.data import synthetic_corpus, write_examples

    folder = tmp_path_factory.mktemp("prepared")
    corpus = synthetic_corpus(5, general=1, train=20, valid=2, test=2)
    for split in ("train", "valid", "test"):
        rows = [row for row in corpus[split] if row.scenario in ("taxi", "food", "ticket")]
        write_examples(folder / CORPUS / f"{split}.jsonl", rows)
    tokenizer = train_tokenizer([text for row in corpus["train"] for text in (row.dialogue, row.summary)], 500)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=128, d_kv=64, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    mop_t5.build_backbone(config).save_pretrained(folder / BACKBONE)
    tokenizer.save_pretrained(folder / BACKBONE)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_run(page, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(systems, "SYSTEMS", dict(systems.SYSTEMS))  # a page adds a method to the tables
    blocks = blocks_of(page)
    for block in blocks:
        if file := re.fullmatch(r"<!-- file: (\S+) -->", block.remark):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(with_few_steps(block.code), encoding="utf-8")
    names = {"__name__": "__main__"}
    for block in blocks:
        where = f"{name_of(page)}, line {block.line}"
        assert block.language in LANGUAGES, f"{where}: the language must be one of {LANGUAGES}, got {block.language!r}"
        if block.language == "python" and not block.remark.startswith("<!-- not run: "):
            code = "\n" * (block.line - 1) + with_few_steps(block.code)  # errors name the line of the page
            exec(compile(code, page, "exec"), names)
        elif block.language == "bash":
            for words in commands_of(with_few_steps(block.code)):
                check_command(words, where, run=block.remark == "<!-- run -->")


def with_few_steps(code: str) -> str:
    return re.sub(r"(\bsteps[=: ] *)\d[\d_]*", r"\g<1>2", code)


def commands_of(code: str) -> list[list[str]]:
    """The words of every command; the commands of a pipe are commands of their own."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):  # a variable of the command
                    words.pop(0)
                commands += [words] if words else []
                words = []
            else:
                words.append(word)
    return commands


def check_command(words: list[str], where: str, run: bool) -> None:
    program, *rest = words
    if program == "torchrun":
        program, rest = "mop-t5", rest[rest.index("mop_t5.cli") + 1 :]
    if program in ("python", "python3") and rest[:1] == ["-m"]:
        program, rest = (rest[1], rest[2:]) if rest[1] in ("pytest", "pip") else ("module", rest[1:])
    if program == "mop-t5":
        check_flags(rest, where)
        if run:
            from mop_t5.cli.main import main

            assert main(rest) == 0, f"{where}: {shlex.join(words)}"
    elif program == "module":
        assert importlib.util.find_spec(rest[0]), f"{where}: there is no module {rest[0]}"
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in rest if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{where}: the Makefile has no target {target}"
    elif program in ("pytest", "python", "python3"):
        for path in (word.partition("::")[0] for word in rest if "/" in word):
            assert list(ROOT.glob(path)), f"{where}: there is no {path}"
    else:
        assert program in OTHER_PROGRAMS, f"{where}: {program} is no program that the pages use"


def check_flags(arguments: list[str], where: str) -> None:
    """Parse a command as `mop-t5` does, with the fields of the method that it names; do not run it."""
    from mop_t5 import methods
    from mop_t5.cli.commands import Command, all_commands
    from mop_t5.cli.flags import parse

    try:
        _, given = parse(arguments, Command(commands=all_commands()), "mop-t5")
    except SystemExit as end:
        if end.code == 0:  # --help
            return
        pytest.fail(f"{where}: mop-t5 {shlex.join(arguments)} is refused")
    if isinstance(given.get("method"), str) and given.get("options"):
        methods.get(given["method"]).Config.make({"scenarios": ("a", "b"), **given["options"]})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_the_links_lead_somewhere(page):
    for token in tokens_of(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src") or ""
            if not target or re.match(r"https?://|mailto:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{name_of(page)} links to {target}, which does not exist"
            assert not anchor or anchor in anchors_of(file), f"{name_of(page)} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_names_exist(page):
    """Inline code that names an object of the packages, a test or a file of the repository names one that exists."""
    spans = [
        child.content for token in tokens_of(page) for child in token.children or () if child.type == "code_inline"
    ]
    for span in spans:
        if name := re.match(r"(?:mop_t5|mop_kernels|mop_lab|benchmarks)(?:\.[a-zA-Z]\w*)+(?![\w/.])", span):
            assert resolves(name[0]), f"{name_of(page)} names {span}"
        if re.fullmatch(r"test_\w+", span):
            assert span in TESTS, f"{name_of(page)} names {span}"
        if (
            re.fullmatch(r"(tests|benchmarks|python|csrc|mop_kernels|examples|docs|findings)/[\w./*]*[./]\w*", span)
            and "NAME" not in span
        ):
            assert list(ROOT.glob(span.rstrip("/"))), f"{name_of(page)} names {span}"


@pytest.mark.parametrize("package", ["mop_kernels", "mop_t5"])
def test_the_api_reference_has_every_public_name(package):
    module = pytest.importorskip(package)
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md")]
    documented = {name for page in pages for name in re.findall(r"^::: ([\w.]*\w)$", page, re.MULTILINE)}
    public = {f"{package}.{name}" for name in module.__all__ if callable(getattr(module, name))}
    assert public - documented <= {"mop_t5.methods"}
    assert [name for name in documented if not resolves(name)] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or leads from a module to an attribute."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.util.find_spec(name) is not None or hasattr(importlib.import_module(module), attribute)
    except ImportError:  # a class stands in between, or nothing
        outer, _, inner = module.rpartition(".")
        return bool(outer) and hasattr(getattr(importlib.import_module(outer), inner, None), attribute)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    tokens, seen, anchors = tokens_of(page), Counter(), set()
    for token, inner in pairwise(tokens):
        if token.type == "heading_open":
            text = "".join(child.content for child in inner.children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return anchors


def test_each_argument_has_an_entry_of_its_own():
    """The site shows `a, b: text` under Args as an argument of that name, which does not exist."""
    folders = ("mop_kernels", "python", "benchmarks")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                arguments = (ast.get_docstring(node) or "").partition("Args:\n")[2].split("\n\n")[0]
                assert not re.search(r"^ {4}\w+(, \w+)+:", arguments, re.MULTILINE), f"{path}: {node.name}"
