"""Hooks of `make docs`.

- The site has the paths of the repository: README.md is the first page, and a link that is right in the repository is
  right on the site. Files outside of docs/ that a page links to become part of the site.
- `::: mop_t5.attach` documents the object of this public name, in whatever module it is defined. `::: mop_t5.data.*`
  documents all public classes and functions of a package.
"""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mkdocs.structure.files import File, Files
from mop_t5 import method_names
from mop_t5.methods import get

ROOT = Path(__file__).parents[2]
_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "findings/README.md")
_LINK = re.compile(r"\]\(([^)#\s:]+)[^)]*\)")
_DIRECTIVE = re.compile(r"^::: (.+)$", re.MULTILINE)


def on_files(files: Files, config) -> Files:
    """Return the files of the site under their paths in the repository."""
    docs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png")}
    style = {"docs/site/style.css"}
    pages = {*_PAGES, *(path for path in docs if path.endswith(".md"))}
    theme = [file for file in files if not file.abs_src_path.startswith(str(ROOT / "docs"))]
    paths = sorted(pages | docs | style | _linked(pages))
    return Files([*theme, *(File.generated(config, path, abs_src_path=str(ROOT / path)) for path in paths)])


def _linked(pages: set[str]) -> set[str]:
    """Return the files outside of docs/ that the pages link to."""
    targets = set()
    for page in pages:
        for link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = (ROOT / page).parent.joinpath(link).resolve()
            if target.is_file():
                targets.add(target.relative_to(ROOT).as_posix())
    return targets


def on_page_markdown(markdown: str, **_) -> str:
    """Replace public names by the names of their definitions, which mkdocstrings reads without importing them."""
    return _DIRECTIVE.sub(lambda found: "\n\n".join(map(_section, *_documented(found[1]))), markdown)


def _documented(directive: str) -> tuple[list[str], list[type | Callable]]:
    """Return the headings and the objects of a directive."""
    if directive == "configs of the methods":
        headings = list(method_names())
        return headings, [get(name).Config for name in headings]
    module, _, attribute = directive.rpartition(".")
    package = import_module(module)
    names = [name for name in package.__all__ if callable(getattr(package, name))] if attribute == "*" else [attribute]
    return [f"{module}.{name}" for name in names], [getattr(package, name) for name in names]


def _section(heading: str, documented: type | Callable) -> str:
    """Return the directive that documents an object under a heading, with an anchor of the heading's name."""
    where = f"{documented.__module__}.{documented.__qualname__}"
    short = heading.rpartition(".")[2]
    return f'[](){{#{heading}}}\n\n::: {where}\n    options: {{heading: "{heading}", toc_label: "{short}"}}\n'
