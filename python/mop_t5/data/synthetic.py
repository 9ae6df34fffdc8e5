"""Make a small synthetic corpus: customer-service dialogues of five scenarios, in Chinese.

A dialogue is drawn from the phrases of synthetic.json. The user says what happened and what is wanted. The agent asks
for one detail and says what will be done. The summary says who reports which problem, what is wanted and what was done.
Every value of a summary (place, dish, amount, time, number) stands in the dialogue, word for word. The dialogue also
holds values that the summary must leave out.

The summary can be written in five house styles, which have other orders and words, but the same content. In the split
`general` the style is drawn at random, so a backbone trained on it can write all five styles and cannot know which
style is wanted. In `train`, `valid` and `test` each scenario has its own style. Tuning on `train` therefore has one
thing to find, the style of each scenario, and a frozen backbone without tuning must guess it. Real corpora are not so
tidy: numbers on this corpus show that a method trains and steers, not how it ranks on real data.
"""

import json
import random
from pathlib import Path
from typing import Any

from mop_t5.data.examples import Example

# "problems": per scenario, pairs of the user's sentence and its clause of the summary. "wishes", "outcomes": such pairs
# for all scenarios. "questions": the agent's question and the user's answer. "styles" and "shares" (of the rows) follow
# the order of the scenarios; in a style, p is the problem, w the wish, o the outcome.
PHRASES: dict[str, Any] = json.loads(Path(__file__).with_name("synthetic.json").read_text(encoding="utf-8"))
SCENARIOS = tuple(PHRASES["problems"])


def synthetic_corpus(
    seed: int = 0, *, general: int = 4000, train: int = 4000, valid: int = 250, test: int = 250
) -> dict[str, list[Example]]:
    """Return the splits `general` (random styles) and `train`, `valid`, `test` (one style per scenario).

    Equal arguments give equal rows on every machine. No dialogue occurs twice. Scenarios have unequal shares of a split
    (taxi the largest, food the smallest), so temperature mixing has an effect. In `test` the shares are equal.

    Args:
        seed: Seed of the corpus.
        general: Number of rows of this split.
        train: Number of rows of this split.
        valid: Number of rows of this split.
        test: Number of rows of this split.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    splits = {}
    for split, size in (("general", general), ("train", train), ("valid", valid), ("test", test)):
        rows: list[Example] = []
        while len(rows) < size:
            if split == "test":
                scenario = SCENARIOS[len(rows) % len(SCENARIOS)]
            else:
                scenario = rng.choices(SCENARIOS, weights=PHRASES["shares"])[0]
            styles = PHRASES["styles"]
            style = rng.choice(styles) if split == "general" else styles[SCENARIOS.index(scenario)]
            dialogue, summary = _pair(rng, scenario, style)
            if dialogue not in seen:
                seen.add(dialogue)
                rows.append(Example(scenario, dialogue, summary, f"{split}-{len(rows) + 1}"))
        splits[split] = rows
    return splits


def places() -> list[str]:
    """Return all places that a dialogue may name."""
    return [area + kind for area in PHRASES["areas"] for kind in PHRASES["kinds"]]


def _pair(rng: random.Random, scenario: str, style: str) -> tuple[str, str]:
    values = _values(rng)
    said, problem = rng.choice(PHRASES["problems"][scenario])
    wish_said, wish = rng.choice(PHRASES["wishes"])
    outcome_said, outcome = rng.choice(PHRASES["outcomes"])
    question, answer = rng.choice(PHRASES["questions"])
    dialogue = f"用户：{said}，{wish_said}。\n客服：{question}\n用户：{answer}\n客服：好的，{outcome_said}。"
    summary = style.format(p=problem, w=wish, o=outcome)
    return dialogue.format(**values), summary.format(**values)


def _values(rng: random.Random) -> dict[str, str]:
    place, goal = rng.sample(places(), 2)
    hours = [f"{hour}:{minute}" for hour in range(9, 22) for minute in ("00", "15", "30", "45")]
    return {
        "place": place,
        "goal": goal,
        "name": rng.choice(PHRASES["names"]),
        "goods": rng.choice(PHRASES["goods"]),
        "dish": rng.choice(PHRASES["dishes"]),
        "show": rng.choice(PHRASES["shows"]),
        "fee": str(rng.randint(11, 99)),
        "coupon": str(rng.choice([5, 10, 15, 20, 25, 30])),
        "hours": str(rng.choice([2, 4, 12, 24, 36, 48, 72])),
        "count": str(rng.randint(2, 9)),
        "time": rng.choice(hours),
        "moment": f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日",
        "order": f"{rng.randint(0, 9999):04d}",
    }
