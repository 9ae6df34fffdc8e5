"""Find the numbers of a text with their units: prices, ratings, durations, telephone numbers, and ranges of these."""

from __future__ import annotations

import math
import re
import unicodedata
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
    # a few characters of the same clause may stand between a label and its number, as in 评分略低为3.5
    rf"(?:(?:(?P<price>{_LABELS['price']})|(?P<rating>{_LABELS['rating']}))[^\d,，。;；、!?\n]{{0,4}}?)?"
    rf"(?P<sign>[$€£¥]\s?)?(?<![A-Za-z\d.#])"
    rf"(?P<number>{_NUMBER}(?:\s?(?:{_UNIT})?\s?[-~至到]\s?{_NUMBER})*)(?:\s?(?P<unit>{_UNIT}))?"
    r"|(?:(?:票价|门票|价格)[是为:]?|\A(?=不?免费\Z))(?P<free>不?免费)",
    re.IGNORECASE,
)
_ANY_LABEL = re.compile("|".join(_LABELS.values()), re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """A number or a range of numbers in a text, with its unit.

    Attributes:
        number: Digits, with "-" between the ends of a range. 免费 (free) or 不免费 (not free) of a price.
        kind: "price", "rating" or "number".
        unit: The unit of a "number". Empty if no unit follows it.
        start: The position of the first character.
        end: The position after the last character.
        label: The position of a label before the number, such as 票价 (ticket price). `start` if there is no label.
    """

    number: str
    kind: str
    unit: str
    start: int
    end: int
    label: int

    @property
    def bare(self) -> bool:
        """True if the number has neither a unit nor a label."""
        return self.kind == "number" and not self.unit

    def agrees(self, other: Amount) -> bool:
        """Return whether two amounts can mean the same: the numbers are equal, and the units do not differ."""
        same_unit = (self.kind, self.unit) == (other.kind, other.unit)
        return self.number == other.number and (same_unit or self.bare or other.bare)

    def free_in(self, text: str) -> bool:
        """Return whether this amount is 免费 or 不免费, and a text has the same word."""
        return not self.number[0].isdigit() and re.search(f"(?<!不){self.number}", text) is not None


def amounts(text: str, words: Sequence[tuple[int, int]]) -> list[Amount]:
    """Return all amounts of a text, in order.

    Digits after a Latin letter, as in A1, are part of a word and no amount.

    Args:
        text: The text.
        words: The start and the end of each word. A unit must end at the end of a word, so 分 in 分店 is no unit.
    """
    ends = {end for _, end in words}
    found = _AMOUNT.finditer(text)
    return [_amount(match, ends) for match in found if match["free"] or match.end("number") in ends]


def number_recall(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the share of the numbers in the references that the hypothesis also has. NaN if there are no numbers.

    A number is a run of digits. Full-width digits equal the others.
    """
    pairs = [(_runs_of_digits(r), _runs_of_digits(h)) for r, h in zip(references, hypotheses, strict=True)]
    wanted = sum(len(reference) for reference, _ in pairs)
    return sum(len(reference & hypothesis) for reference, hypothesis in pairs) / wanted if wanted else math.nan


def _runs_of_digits(text: str) -> set[str]:
    return {"".join(str(unicodedata.decimal(digit)) for digit in run) for run in re.findall(r"\d+", text)}


def is_label(word: str) -> bool:
    """Return whether a word is the label of a number, such as 票价, and so no name."""
    return _ANY_LABEL.fullmatch(word) is not None


def _amount(match: re.Match[str], ends: set[int]) -> Amount:
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
    """Return the plain form of a unit: 小时 of 个小时, day of days."""
    return unit.lower().removeprefix("个").replace("日", "号").removesuffix("s")


def _digits(number: str) -> str:
    """Return a number without units and separators: 2-4 of 2小时-4小时, 1000 of 1,000, 4.5 of 4.50."""
    parts = re.findall(_NUMBER, number)
    return "-".join(_decimal(part.replace(",", "")) for part in parts)


def _decimal(number: str) -> str:
    return number.rstrip("0").rstrip(".") if number.count(".") == 1 and ":" not in number else number
