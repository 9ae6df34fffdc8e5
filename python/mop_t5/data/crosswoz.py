"""CrossWOZ (thu-coai/CrossWOZ) as a corpus of single scenarios, with what the user wants as summary.

Two people played a CrossWOZ dialogue over a list of sub-goals, each of one domain, and the annotation says which slots
of which sub-goal the user has spoken of so far. A dialogue is cut where the sub-goal changes. A piece is one sub-goal:
its domain is the scenario, its turns are the dialogue, and the sentences that told the user what to want are the
summary. A piece is dropped where it is not clearly of one sub-goal, or where the summary says what the piece does not.

CrossWOZ: Zhu et al., TACL 2020, Apache-2.0; its licence asks to keep that attribution with changed copies.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mop_t5.data.corpus import SPLITS, Example, decoded, json_object

PARTS = ("train", "val", "test")
SCENARIO_OF = {"餐馆": "restaurant", "景点": "attraction", "酒店": "hotel", "地铁": "metro", "出租": "taxi"}
_GROUNDED = 0.5  # least share of the wanted values that the piece must say


class _Dropped(Exception):
    """Why a piece is left out."""


class _Exchange(NamedTuple):
    """A turn of the user and the answer to it."""

    user: str
    system: str
    opened: set[int]  # sub-goals of which the user speaks of a slot for the first time
    domains: set[str]  # of the user's turn


def read_clone(folder: str | Path, parts: Sequence[str] = PARTS) -> dict[str, dict]:
    """The dialogues of a clone by their ids. parts: which of its files, out of PARTS.

    folder: the clone, or the folder in it with train.json.zip, val.json.zip and test.json.zip, unpacked or not. Raises
    FileNotFoundError for a file that is missing, ValueError for one that cannot be read and for an unknown part.
    """
    folder = Path(folder)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ValueError(f"parts must name some of {', '.join(PARTS)}; got {', '.join(unknown) or 'none'}.")
    inside = folder / "data" / "crosswoz"
    dialogues: dict[str, dict] = {}
    for part in parts:
        more = _read_part(inside if inside.is_dir() else folder, part)
        repeated = sorted(dialogues.keys() & more.keys())
        if repeated:
            raise ValueError(f"dialogue {repeated[0]!r} of {part} is in another part, too. Take one of them out.")
        dialogues |= more
    return dialogues


def crosswoz_corpus(dialogues: Mapping[str, dict]) -> tuple[dict[str, list[Example]], Counter]:
    """The splits train, valid and test, and how many pieces were dropped for which reason.

    Splits are 8:1:1 by a hash of the dialogue's id, so all pieces of a dialogue are in one. Rows are in the order of a
    hash of their ids. Both depend on nothing but the ids. Raises ValueError for a dialogue of another layout.
    """
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    dropped: Counter = Counter()
    for identifier, dialogue in dialogues.items():
        try:
            examples = list(_pieces(f"crosswoz-{identifier}", dialogue, dropped))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"dialogue {identifier!r} is not laid out as those of CrossWOZ ({type(error).__name__}: {error})."
            ) from error
        splits[_split_of(f"crosswoz-{identifier}")] += examples
    for rows in splits.values():
        rows.sort(key=lambda row: _hash(row.id))
    return splits, dropped


def _read_part(folder: Path, part: str) -> dict[str, dict]:
    plain, packed = folder / f"{part}.json", folder / f"{part}.json.zip"
    where = f"{part}.json in {folder}"
    if not plain.is_file() and not packed.is_file():
        raise FileNotFoundError(f"{folder} has no {plain.name} or {packed.name}. Give a clone of thu-coai/CrossWOZ.")
    try:
        if plain.is_file():
            raw = plain.read_bytes()
        else:
            with zipfile.ZipFile(packed) as archive:
                raw = archive.read(plain.name)
        content = json_object(decoded(raw, 1, where), where, "dialogues by their ids")
    except (ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} cannot be read ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold dialogues by their ids; got {type(content).__name__}.")
    return content


def _pieces(identifier: str, dialogue: dict, dropped: Counter) -> Iterator[Example]:
    try:
        exchanges = _exchanges(dialogue["messages"])
    except _Dropped as reason:
        dropped[str(reason)] += 1
        return
    owners = _owners(exchanges)
    sub_goals = dict.fromkeys(goal[0] for goal in dialogue["goal"])
    descriptions = dialogue["task description"]
    if not isinstance(descriptions, list) or len(descriptions) != len(sub_goals):
        raise ValueError(f"{len(sub_goals)} sub-goals need as many descriptions; got {descriptions!r}")
    for sub_goal, description in zip(sub_goals, descriptions):
        try:
            scenario, turns, summary = _piece(dialogue, sub_goal, description, exchanges, owners)
            yield Example(scenario, turns, summary, f"{identifier}-{sub_goal}")
        except _Dropped as reason:
            dropped[str(reason)] += 1


def _exchanges(messages: Sequence[dict]) -> list[_Exchange]:
    exchanges, known = [], set()
    if len(messages) % 2:
        raise _Dropped("user and system do not take turns")
    for user, system in zip(messages[::2], messages[1::2]):
        if (user["role"], system["role"]) != ("usr", "sys"):
            raise _Dropped("user and system do not take turns")
        spoken_of = {(sub_goal, slot) for sub_goal, _, slot, _, mentioned in user["user_state"] if mentioned}
        opened = {sub_goal for sub_goal, _ in spoken_of - known}
        known |= spoken_of
        domains = {act[1] for act in user["dialog_act"] if act[0] != "General"}
        exchanges.append(_Exchange(user["content"], system["content"], opened, domains))
    return exchanges


def _owners(exchanges: Sequence[_Exchange]) -> list[int | None]:
    """The sub-goal of each exchange; None for one that opens several, and before the first."""
    owners, current = [], None
    for exchange in exchanges:
        if len(exchange.opened) == 1:
            (current,) = exchange.opened
        owners.append(None if len(exchange.opened) > 1 else current)
    return owners


def _piece(
    dialogue: dict, sub_goal: int, description: str, exchanges: Sequence[_Exchange], owners: Sequence[int | None]
) -> tuple[str, str, str]:
    """Scenario, dialogue and summary of one sub-goal."""
    places = [place for place, owner in enumerate(owners) if owner == sub_goal]
    if not places:
        raise _Dropped("sub-goal never spoken of")
    first, last = places[0], places[-1]
    if len(places) != last - first + 1:
        raise _Dropped("sub-goal interrupted by another")
    if None in owners[max(first - 1, 0) : last + 2]:
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


def _names(dialogue: dict) -> dict[int, str]:
    """The places that were found, by sub-goal."""
    return {
        sub_goal: value
        for sub_goal, _, slot, value, _ in dialogue["final_goal"]
        if slot == "名称" and isinstance(value, str) and value and "id=" not in value
    }


def _values(slot: str, value: str | list[str]) -> list[str]:
    """The texts that a goal asks for. A service that a hotel is to have (是) is named by its slot."""
    if not value or "id=" in str(value):
        return []
    if value == "是":
        return [slot.split("-")[-1]]
    return value if isinstance(value, list) else [value]


def _summary(description: str, names: Mapping[int, str], user: str) -> str:
    """The description of a sub-goal, told to the user, as one sentence about the user.

    "id=2" is the place found in sub-goal 2. Its name stands there if the user says it in this piece. If not, a place
    near it is just nearby (附近的), and anything else cannot be told.
    """
    said = _plain(user)

    def place(number: str) -> str | None:
        name = names.get(int(number), "")
        in_other_words = (_plain(name), _plain(name).split("(")[0])  # without the branch of a chain
        return name if name and any(words in said for words in in_other_words) else None

    def needed(match: re.Match) -> str:
        name = place(match[1])
        if name is None:
            raise _Dropped("place of another sub-goal, not named here")
        return name

    text = re.sub(r"\(id=\d+\)", "", description)
    text = re.sub(r"id=(\d+)附近的", lambda match: f"{place(match[1]) or ''}附近的", text)
    text = re.sub(r"id=(\d+)", needed, text)
    text = text.replace("这个出租的", "出租车的").replace("这个地铁的", "地铁的")
    first, *others = (sentence for sentence in text.split("。") if sentence)
    clauses = [re.sub("^你", "用户", first), *(re.sub("^你", "", sentence) for sentence in others)]
    return _squeeze("，".join(clauses) + "。")


def _split_of(identifier: str) -> str:
    bucket = int(_hash(identifier), 16) % 10
    return "test" if bucket == 0 else "valid" if bucket == 1 else "train"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", _squeeze(text))
