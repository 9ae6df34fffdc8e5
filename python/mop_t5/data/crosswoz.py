"""Make a corpus of one-scenario dialogues from CrossWOZ (thu-coai/CrossWOZ). A summary states what the user requests.

Two people played a CrossWOZ dialogue over a list of sub-goals, each of one domain. The annotation says which slots of
which sub-goal the user has mentioned so far. A dialogue is cut where the sub-goal changes. Each piece has one sub-goal:
its domain is the scenario, its turns are the dialogue, and its description for the user is the summary. A piece is
dropped if it does not clearly belong to one sub-goal, or if the summary states more than the piece.

CrossWOZ: Zhu et al., TACL 2020, Apache-2.0. The licence asks to keep this attribution with changed copies.
"""

import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mop_t5.checks import check_subset
from mop_t5.data.corpus import SPLITS
from mop_t5.data.examples import Example
from mop_t5.data.lines import LONGEST_LINE, decoded, json_value
from mop_t5.files import StrPath, checksum

PARTS = ("train", "val", "test")
Dialogue = dict[str, Any]  # one dialogue of CrossWOZ, as its JSON holds it
SCENARIO_OF = {"餐馆": "restaurant", "景点": "attraction", "酒店": "hotel", "地铁": "metro", "出租": "taxi"}
_GROUNDED = 0.5  # smallest share of the wanted values that a piece must mention


class _Dropped(Exception):
    """Error of a piece that does not enter the corpus. Its text is the reason."""


class _Exchange(NamedTuple):
    """A turn of the user and the answer to it.

    Attributes:
        user: Text of the user.
        system: Text of the answer.
        sub_goal: The sub-goal that the exchange belongs to: the latest sub-goal of which the user has mentioned a new
            slot. None before the first such sub-goal, and if the user mentions new slots of several sub-goals.
        domains: Domains of the user's turn.
    """

    user: str
    system: str
    sub_goal: int | None
    domains: set[str]


def read_clone(folder: StrPath, parts: Sequence[str] = PARTS) -> dict[str, Dialogue]:
    """Return the dialogues of a clone by their ids.

    Args:
        folder: The clone, or its folder with train.json.zip, val.json.zip and test.json.zip, unpacked or not.
        parts: The files to read, from PARTS.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be read, a part is unknown, or an id stands in two parts.
    """
    folder = Path(folder)
    check_subset("parts", parts, PARTS)
    inside = folder / "data" / "crosswoz"
    dialogues: dict[str, Dialogue] = {}
    for part in parts:
        more = _read_part(inside if inside.is_dir() else folder, part)
        repeated = sorted(dialogues.keys() & more.keys())
        if repeated:
            raise ValueError(f"dialogue {repeated[0]!r} of {part} stands in another part, too. Take one of them out.")
        dialogues |= more
    return dialogues


def crosswoz_corpus(dialogues: Mapping[str, Dialogue]) -> tuple[dict[str, list[Example]], Counter[str]]:
    """Return the splits train, valid and test, and the number of dropped pieces by reason.

    Splits are 8:1:1 by a checksum of the dialogue's id, so all pieces of a dialogue are in one split. Rows are in the
    order of the checksums of their ids. Both depend on the ids only.

    Args:
        dialogues: The dialogues of `read_clone` by id.

    Raises:
        ValueError: A dialogue has another layout.
    """
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    dropped: Counter[str] = Counter()
    for identifier, dialogue in dialogues.items():
        try:
            examples = list(_pieces(f"crosswoz-{identifier}", dialogue, dropped))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"dialogue {identifier!r} does not have the layout of CrossWOZ ({type(error).__name__}: {error})."
            ) from error
        splits[_split_of(f"crosswoz-{identifier}")] += examples
    for rows in splits.values():
        rows.sort(key=lambda row: checksum(row.id.encode()))
    return splits, dropped


def _read_part(folder: Path, part: str) -> dict[str, Dialogue]:
    plain, packed = folder / f"{part}.json", folder / f"{part}.json.zip"
    where = f"{part}.json in {folder}"
    if not plain.is_file() and not packed.is_file():
        raise FileNotFoundError(f"{folder} has no {plain.name} or {packed.name}. Give a clone of thu-coai/CrossWOZ.")
    try:
        if plain.is_file():
            raw = plain.read_bytes()
        else:
            with zipfile.ZipFile(packed) as archive:
                if archive.getinfo(plain.name).file_size > LONGEST_LINE:  # no more than this size is ever unpacked
                    raise ValueError(f"it unpacks to more than {LONGEST_LINE:,} bytes")
                raw = archive.read(plain.name)
        content = json_value(decoded(raw, 1, where), where, "dialogues by their ids")
    except (ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} cannot be read ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold dialogues by their ids; got {type(content).__name__}.")
    return content


def _pieces(identifier: str, dialogue: Dialogue, dropped: Counter[str]) -> Iterator[Example]:
    messages = dialogue["messages"]
    if len(messages) % 2 or any(one["role"] != ("usr", "sys")[place % 2] for place, one in enumerate(messages)):
        dropped["user and system do not take turns"] += 1
        return
    exchanges = _exchanges(messages)
    sub_goals = dict.fromkeys(goal[0] for goal in dialogue["goal"])
    descriptions = dialogue["task description"]
    if not isinstance(descriptions, list) or len(descriptions) != len(sub_goals):
        raise ValueError(f"{len(sub_goals)} sub-goals need as many descriptions; got {descriptions!r}")
    for sub_goal, description in zip(sub_goals, descriptions):
        try:
            yield Example(*_piece(dialogue, sub_goal, description, exchanges), id=f"{identifier}-{sub_goal}")
        except _Dropped as reason:
            dropped[str(reason)] += 1


def _exchanges(messages: Sequence[dict[str, Any]]) -> list[_Exchange]:
    exchanges = []
    known: set[tuple[int, str]] = set()
    current: int | None = None
    for user, system in zip(messages[::2], messages[1::2]):
        spoken_of = {(sub_goal, slot) for sub_goal, _, slot, _, mentioned in user["user_state"] if mentioned}
        opened = {sub_goal for sub_goal, _ in spoken_of - known}
        known |= spoken_of
        if len(opened) == 1:
            (current,) = opened
        domains = {act[1] for act in user["dialog_act"] if act[0] != "General"}
        sub_goal = None if len(opened) > 1 else current
        exchanges.append(_Exchange(user["content"], system["content"], sub_goal, domains))
    return exchanges


def _piece(dialogue: Dialogue, sub_goal: int, description: str, exchanges: Sequence[_Exchange]) -> tuple[str, str, str]:
    """Return scenario, dialogue and summary of one sub-goal."""
    places = [place for place, exchange in enumerate(exchanges) if exchange.sub_goal == sub_goal]
    if not places:
        raise _Dropped("sub-goal never spoken of")
    first, last = places[0], places[-1]
    if len(places) != last - first + 1:
        raise _Dropped("sub-goal interrupted by another")
    if any(exchange.sub_goal is None for exchange in exchanges[max(first - 1, 0) : last + 2]):
        raise _Dropped("turn of several sub-goals in it or beside it")
    if not all(goal[4] for goal in dialogue["final_goal"] if goal[0] == sub_goal):
        raise _Dropped("sub-goal not finished")
    mine = exchanges[first : last + 1]
    domain = next(goal[1] for goal in dialogue["goal"] if goal[0] == sub_goal)
    if set().union(*(exchange.domains for exchange in mine)) - {domain}:
        raise _Dropped("turn of another domain")
    summary = _summary(description, _names(dialogue), "".join(exchange.user for exchange in mine))
    turns = "\n".join(f"用户：{_squeeze(e.user)}\n客服：{_squeeze(e.system)}" for e in mine)
    wanted = [value for goal in dialogue["goal"] if goal[0] == sub_goal for value in _values(goal[2], goal[3])]
    said = _squeeze(turns)
    if sum(_squeeze(value) in said for value in wanted) < _GROUNDED * len(wanted):
        raise _Dropped("less than half of the wanted values said")
    return SCENARIO_OF[domain], turns, summary


def _names(dialogue: Dialogue) -> dict[int, str]:
    """Return the names of the places that were found, by sub-goal."""
    return {
        sub_goal: value
        for sub_goal, _, slot, value, _ in dialogue["final_goal"]
        if slot == "名称" and isinstance(value, str) and value and "id=" not in value
    }


def _values(slot: str, value: str | list[str]) -> list[str]:
    """Return the values that a goal asks for. The value of a service that a hotel must have (是) is its slot's name."""
    if not value or "id=" in str(value):
        return []
    if value == "是":
        return [slot.split("-")[-1]]
    return value if isinstance(value, list) else [value]


def _summary(description: str, names: Mapping[int, str], user: str) -> str:
    """Return the description of a sub-goal, which addresses the user, as one sentence about the user.

    "id=2" is the place found in sub-goal 2. If the user gives the name of the place in this piece, "id=2" becomes the
    name. If not, "near id=2" becomes "nearby" (附近的), and any other use drops the piece.
    """
    said = _plain(user)

    def place(match: re.Match) -> str:
        name, near = names.get(int(match[1]), ""), match[2] or ""
        if name and _plain(name).split("(")[0] in said:  # without the branch of a chain
            return name + near
        if not near:
            raise _Dropped("place of another sub-goal, not named here")
        return near

    text = re.sub(r"\(id=\d+\)", "", description)
    text = re.sub(r"id=(\d+)(附近的)?", place, text)
    text = text.replace("这个出租的", "出租车的").replace("这个地铁的", "地铁的")
    first, *others = (sentence for sentence in text.split("。") if sentence)
    clauses = [re.sub("^你", "用户", first), *(re.sub("^你", "", sentence) for sentence in others)]
    return _squeeze("，".join(clauses) + "。")


def _split_of(identifier: str) -> str:
    bucket = int(checksum(identifier.encode()), 16) % 10
    return "test" if bucket == 0 else "valid" if bucket == 1 else "train"


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", _squeeze(text))
