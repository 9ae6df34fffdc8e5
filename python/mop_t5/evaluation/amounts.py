"""Numbers of a text with what they count: prices, ratings, durations, telephone numbers, ranges of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = {
    "price": "元|块钱|块|人民币|美元|欧元|dollars?|euros?|yuan",
    "rating": "分|星级|星|stars?|points?",
    "number": "个小时|小时|分钟|天|日|号|月|年|点|件|份|张|个|人|位|间|晚|次|公里|米|hours?|minutes?|days?|people|%",
}
_LABELS = {
    "price": r"票价|门票|人均消费|人均|价格|价钱|房价|车费|费用|\b(?:price|costs?|fee|fare)\b",
    "rating": r"评分|打分|星级|\b(?:rating|rated|score)\b",
}
_UNIT = "|".join(sorted("|".join(_UNITS.values()).split("|"), key=len, reverse=True))
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.:]\d+)*)"
_AMOUNT = re.compile(
    # few characters of the same clause between a label and its number, as in 评分略低为3.5
    rf"(?:(?:(?P<price>{_LABELS['price']})|(?P<rating>{_LABELS['rating']}))[^\d,，。;；、!?\n]{{0,4}}?)?"
    rf"(?P<sign>[$€£¥]\s?)?(?<![A-Za-z\d.#])"
    rf"(?P<number>{_NUMBER}(?:\s?(?:{_UNIT})?\s?[-~至到]\s?{_NUMBER})*)(?:\s?(?P<unit>{_UNIT}))?"
    r"|(?:(?:票价|门票|价格)[是为:]?|\A(?=不?免费\Z))(?P<free>不?免费)",
    re.IGNORECASE,
)
_ANY_LABEL = re.compile("|".join(_LABELS.values()), re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """A number, or a range, at start:end of a text with its unit.

    number: digits, "-" between the ends of a range; 免费 or 不免费 of a price. kind: "price", "rating" or "number".
    unit: of a "number", empty where none stands behind it. label: where a word before it that says what it counts
    starts, such as 票价; start where there is none.
    """

    number: str
    kind: str
    unit: str
    start: int
    end: int
    label: int

    @property
    def bare(self) -> bool:
        """Whether nothing says what it counts."""
        return self.kind == "number" and not self.unit

    def agrees(self, other: Amount) -> bool:
        """Whether both can mean the same: one number, and no different units."""
        same_unit = (self.kind, self.unit) == (other.kind, other.unit)
        return self.number == other.number and (same_unit or self.bare or other.bare)

    def free_in(self, text: str) -> bool:
        """Whether this is 免费 or 不免费 and a text says so, of whatever."""
        return not self.number[0].isdigit() and re.search(f"(?<!不){self.number}", text) is not None


def amounts(text: str, words: Sequence[tuple[int, int]]) -> list[Amount]:
    """All numbers of a text, in order. words: starts and ends of its words; a unit ends where a word does, so that the
    first half of 分店 is none. Digits behind a Latin letter, such as those of A1, are a part of its word."""
    ends = {end for _, end in words}
    found = _AMOUNT.finditer(text)
    return [_amount(match, ends) for match in found if match["free"] or match.end("number") in ends]


def is_label(word: str) -> bool:
    """Whether a word says what a number counts, such as 票价: it is no name."""
    return _ANY_LABEL.fullmatch(word) is not None


def _amount(match: re.Match, ends: set[int]) -> Amount:
    if match["free"]:
        return Amount(match["free"], "price", "", *match.span("free"), match.start())
    unit = match["unit"] if match.end("unit") in ends else None
    start = match.start("number") if match["sign"] is None else match.start("sign")
    end = match.end("number" if unit is None else "unit")
    kind = "price" if match["sign"] else _kind_of(unit) if unit else "price" if match["price"] else None
    kind = kind or ("rating" if match["rating"] else "number")
    counted = _plain(unit) if unit and kind == "number" else ""
    return Amount(_digits(match["number"]), kind, counted, start, end, match.start())


def _kind_of(unit: str) -> str:
    return next(kind for kind, units in _UNITS.items() if re.fullmatch(units, unit, re.IGNORECASE))


def _plain(unit: str) -> str:
    """One form of a unit: 个小时 is 小时, days is day."""
    return unit.lower().removeprefix("个").replace("日", "号").removesuffix("s")


def _digits(number: str) -> str:
    """Without units and separators: 2小时-4小时 is 2-4, 1,000 is 1000, 4.50 is 4.5."""
    parts = re.findall(_NUMBER, number)
    return "-".join(_decimal(part.replace(",", "")) for part in parts)


def _decimal(number: str) -> str:
    return number.rstrip("0").rstrip(".") if number.count(".") == 1 and ":" not in number else number
