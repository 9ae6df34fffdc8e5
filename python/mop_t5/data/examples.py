"""One row of a corpus, and how it is read from a JSON object or a row of a table."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mop_t5.checks import has_half_pair

KEYS = {"scenario": "task", "dialogue": "input", "summary": "target"}  # each with its other name


@dataclass(frozen=True)
class Example:
    """One dialogue of one scenario.

    Attributes:
        summary: The text to learn. Empty only in a row that was read for generation.
        references: Further right answers.
    """

    scenario: str
    dialogue: str
    summary: str
    id: str
    references: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """All right answers: the summary and the references."""
        return (self.summary, *self.references)

    def row(self) -> dict[str, Any]:
        """Return the example as a row of a file. A row without references has no such key."""
        return {name: value for name, value in asdict(self).items() if value != ()}


def example_of(row: object, where: str, default_id: str, need_summary: bool = True) -> Example:
    """Return the example that a row of JSON describes.

    Args:
        row: The value of the JSON text.
        where: Place of the row, for messages.
        default_id: Id of a row without an id.
        need_summary: True if the row must have a summary.

    Raises:
        TypeError: The row is no object, or a field has a wrong type.
        ValueError: A field is missing, empty or given twice.
    """
    if not isinstance(row, dict):
        raise TypeError(f"{where}: expected a JSON object with {quoted(KEYS)}, got {type(row).__name__}.")
    fields = {key: _field(row, key, where, key != "summary" or need_summary) for key in KEYS}
    identifier, references = row.get("id", default_id), row.get("references", [])
    if not isinstance(identifier, str):
        raise TypeError(f"{where}: `id` must be a string, got {type(identifier).__name__}. Put it in quotes.")
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise TypeError(f"{where}: `references` must be a list of strings, got {references!r}.")
    if not all(map(str.strip, references)):
        raise ValueError(f"{where}: `references` has an empty text. Fill it in or delete it.")
    for key, texts in {"id": [identifier], "references": references}.items():
        check_characters("".join(texts), key, where)
    return Example(**fields, id=identifier, references=tuple(references))


def _field(row: dict[str, object], key: str, where: str, needed: bool) -> str:
    present = [name for name in (key, KEYS[key]) if name in row]
    if len(present) == 2:
        raise ValueError(f"{where}: has both `{key}` and `{KEYS[key]}`, which mean the same. Keep one of them.")
    if not (present or needed):
        return ""
    if not present:
        raise ValueError(f"{where}: no `{key}` (or `{KEYS[key]}`). Keys found: {quoted(row) or 'none'}. Add it.")
    value = row[present[0]]
    if value is None:
        raise TypeError(f"{where}: `{present[0]}` must be a string, got null. Fill it in or delete the row.")
    if not isinstance(value, str):
        is_turns = isinstance(value, list) and key == "dialogue"
        cure = " Write its turns as one text, one line per turn." if is_turns else ""
        raise TypeError(f"{where}: `{present[0]}` must be a string, got {type(value).__name__}.{cure}")
    check_characters(value, present[0], where)
    if needed and not value.strip():
        raise ValueError(f"{where}: `{present[0]}` is empty. Fill it in or delete the row.")
    return str(value)  # the name of a label knows more than its text


def check_characters(text: str, key: str, where: str = "") -> None:
    """Check that a text has no half of a surrogate pair. JSON can escape a half, but no tokenizer or file takes it.

    Args:
        text: The text.
        key: Name of the field, for messages.
        where: Place of the row, for messages.

    Raises:
        ValueError: The text has a half.
    """
    if has_half_pair(text):
        raise ValueError(
            f"{where}{': ' if where else ''}`{key}` has half of a surrogate pair (an escape \\ud800 to \\udfff that "
            "stands alone). Write the whole character, or delete it."
        )


def quoted(names: Iterable[str]) -> str:
    """Return names in backquotes, for messages."""
    return ", ".join(f"`{name}`" for name in names)
