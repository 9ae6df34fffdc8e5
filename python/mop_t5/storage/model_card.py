"""Make the model card of an adapter folder: README.md, with metadata that the model hub reads.

The same adapter gives the same card, byte for byte. The last line of a card holds the checksum of the text above it, so
a card that was changed by hand is recognised, and is never replaced.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mop_t5.files import checksum

CARD_NAME = "README.md"
LIBRARY = "mop_t5"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARK = "<!-- Written by mop_t5, which keeps a card that was changed by hand. Checksum: {} -->\n"


def make(description: Mapping[str, Any], parameters: int, *, licence: str | None = None, sections: str = "") -> bytes:
    """Return the content of the card of an adapter.

    Args:
        description: The content of mop_config.json.
        parameters: The number of values in the weights file.
        licence: The licence of the adapter, by its name on the hub. None leaves the field out.
        sections: Further sections, in Markdown.
    """
    method, options, backbone = description["method"], dict(description["config"]), description["backbone"]
    scenarios, name = options.pop("scenarios", None) or [], backbone["name"]
    on_hub = name is not None and _HUB_NAME.fullmatch(name) is not None
    metadata = ModelCardData(
        library_name=LIBRARY,
        base_model=name if on_hub else None,
        license=licence,
        tags=[LIBRARY, method, backbone["shape"]["model_type"]],
        base_model_relation="adapter" if on_hub else None,
    )
    facts = [
        ("method", code(method)),
        ("scenarios", ", ".join(map(code, scenarios)) or "none"),
        ("parameters", f"{parameters:,}"),
        *([] if licence is None else [("licence", code(licence))]),
    ]
    facts_of_backbone = [
        ("name", "none" if name is None else code(name)),
        ("SHA-256 of its weights", code(backbone["sha256"])),
    ]
    facts_of_backbone += [(field, code(value)) for field, value in backbone["shape"].items()]
    text = f"""---
{metadata.to_yaml().rstrip()}
---

# {method} for {code(name or "a T5")}

An adapter of {LIBRARY}. It tunes a frozen backbone, which is not part of it. {LIBRARY}.load refuses any other backbone.

```python
import mop_t5

model = mop_t5.load_backbone({json.dumps(name or "BACKBONE", ensure_ascii=False)})
mop_t5.load(model, "ADAPTER")  # this folder, or the name of its repository
```

{table(["adapter", ""], facts)}
## Options of the method

{table(["option", "value"], [(option, code(without_folders(value))) for option, value in options.items()])}
## Backbone

{table(["backbone", ""], facts_of_backbone)}
{sections}"""
    text = text.rstrip() + "\n\n"  # an empty line ends a table
    return (text + _MARK.format(checksum(text.encode()))).encode()


def is_changed(path: Path) -> bool:
    """Return whether there is a card at `path` that was written or changed by hand."""
    if not path.is_file():
        return os.path.lexists(path)
    content = path.read_bytes()
    start = content.rstrip().rfind(b"\n") + 1
    return content[start:] != _MARK.format(checksum(content[:start])).encode()


def check_licence(licence: str | None) -> None:
    """Raise TypeError or ValueError unless `licence` may be the name of a licence on the hub. None passes."""
    if licence is None:
        return
    if not isinstance(licence, str):
        raise TypeError(f"licence must be a string; got {licence!r}.")
    if not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"licence must be the name of a licence on the model hub, in small letters, such as apache-2.0; got "
            f"{licence!r}."
        )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown. Its cells may hold Markdown, but no line breaks."""
    lines = [[str(cell).replace("|", r"\|") for cell in line] for line in (columns, ["---"] * len(columns), *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(value: object) -> str:
    """Return `value` as code in Markdown, on one line."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in (text[:1], text[-1:]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def block(text: str, language: str) -> str:
    """Return lines of `text` as a block of code in Markdown."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def without_folders(value: Any) -> Any:
    """Return a setting in which every absolute path is its last part: the folders of a machine are private."""
    if isinstance(value, Mapping):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(one) for one in value]
    return os.path.basename(os.path.normpath(value)) if isinstance(value, str) and os.path.isabs(value) else value
