"""Show cases: a dialogue, its reference and the summaries of several systems, with the values they omit and invent."""

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from mop_t5.data import Example
from mop_t5.evaluation.values import Value, Values, has
from rich.text import Text

KEPT, INVENTED = "kept", "invented"
_STYLES = {"": "", KEPT: "green", INVENTED: "bold red"}
_LEGEND = (
    "{}: a value that neither the dialogue nor the reference has. {}: a value that reference and dialogue contain and "
    "the summary does not have."
)
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")


class Segment(NamedTuple):
    """A piece of a text.

    Attributes:
        text: The piece.
        mark: "kept" for a value that both reference and dialogue contain, "invented" for a value that neither has,
            otherwise empty.
    """

    text: str
    mark: str


@dataclass(frozen=True)
class Summary:
    """The summary of a row by a system.

    Args:
        system: The label of the system.
        seed: The seed of the training.
        text: The summary.
        segments: The segments of the summary.
        omitted: Values that reference and dialogue contain and the summary lacks.
        invented: Values that neither reference nor dialogue has.
    """

    system: str
    seed: int
    text: str
    segments: list[Segment]
    omitted: list[Value]
    invented: list[Value]


@dataclass(frozen=True)
class Case:
    """A row with the summaries of several systems.

    Args:
        example: The row.
        said: Values of the reference that the dialogue contains.
        reference: The segments of the reference, in which these values are marked as kept.
        summaries: The summaries.
    """

    example: Example
    said: list[Value]
    reference: list[Segment]
    summaries: list[Summary]


def marked(example: Example, text: str, values: Values) -> list[Segment]:
    """Cut a summary of a row, or its reference, into segments. Joined, the segments are the text."""
    strange = values.invented(example, text)
    said = values.said(example)
    places = [(value.start, value.end, INVENTED) for value in strange]
    for value in values.find(text):
        free = all(value.end <= start or end <= value.start for start, end, mark in places if mark == INVENTED)
        if free and any(has(value.text, one) for one in said):
            places.append((value.start, value.end, KEPT))
    segments, end = [], 0
    for start, stop, mark in sorted(places):
        segments += [Segment(text[end:start], ""), Segment(text[start:stop], mark)]
        end = stop
    return [segment for segment in (*segments, Segment(text[end:], "")) if segment.text]


def case_of(example: Example, texts: Mapping[tuple[str, int], str], values: Values) -> Case:
    """Return the case of a row.

    Args:
        example: The row.
        texts: (label of a system, seed) -> the summary of the row.
        values: Finds the values of texts.
    """

    def found(text: str) -> tuple[list[Segment], list[Value], list[Value]]:
        return marked(example, text, values), values.omitted(example, text), values.invented(example, text)

    summaries = [Summary(system, seed, text, *found(text)) for (system, seed), text in texts.items()]
    return Case(example, values.said(example), marked(example, example.summary, values), summaries)


def most_different(cases: Sequence[Case], count: int) -> list[Case]:
    """Return the cases whose summaries differ most in the number of values they omit.

    The order is: the first case of each scenario, then the second of each, and so on. Cases without a difference come
    last. Of equal cases, the case with more values comes first.

    Args:
        cases: The cases to choose from.
        count: How many cases are returned at most.
    """

    def differing(case: Case) -> tuple[int, int]:
        omitted = [len(summary.omitted) for summary in case.summaries]
        return min(omitted) - max(omitted), -len(case.said)

    places: Counter[str] = Counter()
    turns = []
    for case in sorted(cases, key=differing):
        difference, _ = differing(case)
        turns.append((difference == 0, places[case.example.scenario], case))
        places[case.example.scenario] += 1
    return [case for _, _, case in sorted(turns, key=lambda turn: turn[:2])[:count]]


def to_markdown(cases: Sequence[Case]) -> str:
    """Return Markdown with one section per case: the dialogue, and a table of reference and summaries."""
    sections = [f"# Cases\n\n{_LEGEND.format('<b>+invented+</b>', '<del>omitted</del>')}\n"]
    for number, case in enumerate(cases, start=1):
        turns = "\n".join(f"> {_escaped(turn)}  " for turn in case.example.dialogue.splitlines())
        rows = [("reference", "".join(_escaped(s.text) for s in case.reference), "", "")]
        for one in case.summaries:
            text = "".join(_in_markdown(segment) for segment in one.segments)
            omitted = ", ".join(f"<del>{_escaped(value.text)}</del>" for value in one.omitted)
            rows.append((_escaped(_name(one)), text, _share(case, one), omitted))
        title = f"## {number}. {_escaped(case.example.scenario)}, {_escaped(case.example.id)}"
        table = "\n".join(f"| {' | '.join(row)} |" for row in [("", "summary", "kept", "omitted"), ("---",) * 4, *rows])
        sections.append(f"{title}\n\n{turns}\n\n{table}\n")
    return "\n".join(sections)


def to_text(cases: Sequence[Case]) -> Text:
    """Return the cases for a terminal, with colours. The marks can be read without colours, too."""
    shown = Text(f"{_LEGEND.format('+invented+', 'omitted')}\n")
    for number, case in enumerate(cases, start=1):
        shown.append(f"\n{number}. {case.example.scenario}, {case.example.id}\n", style="bold")
        shown.append(f"{case.example.dialogue.rstrip()}\n")
        _append(shown, "reference", case.reference)
        for one in case.summaries:
            _append(shown, f"{_name(one)} ({_share(case, one)} values)", one.segments)
            if one.omitted:
                shown.append(f"  omitted: {', '.join(value.text for value in one.omitted)}\n", style="yellow")
    return shown


def to_row(case: Case) -> dict[str, Any]:
    """Return a case for a line of JSON: the row, its values, and each summary with its omitted and invented values."""
    return case.example.row() | {
        "said": [asdict(value) for value in case.said],
        "summaries": [
            {"system": one.system, "seed": one.seed, "summary": one.text}
            | {"omitted": [asdict(v) for v in one.omitted], "invented": [asdict(v) for v in one.invented]}
            for one in case.summaries
        ],
    }


def _name(summary: Summary) -> str:
    return f"{summary.system}, seed {summary.seed}"


def _share(case: Case, summary: Summary) -> str:
    return f"{len(case.said) - len(summary.omitted)} of {len(case.said)}"


def _append(shown: Text, name: str, segments: Sequence[Segment]) -> None:
    shown.append(f"{name}: ", style="cyan")
    for segment in segments:
        text = f"+{segment.text}+" if segment.mark == INVENTED else segment.text
        shown.append(text, style=_STYLES[segment.mark])
    shown.append("\n")


def _in_markdown(segment: Segment) -> str:
    text = _escaped(segment.text)
    return f"<b>+{text}+</b>" if segment.mark == INVENTED else text


def _escaped(text: str) -> str:
    """Return the text on one line, with the characters of Markdown and HTML escaped."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split("\n")), quote=False))
