"""Statistics of a corpus: the size of each scenario, and the mean lengths of its dialogues and summaries."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mop_t5.data import SPLITS, Example, of_scenarios, read_split, scenarios_of
from mop_t5.evaluation.tables import Table


def corpus_table(corpus: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Table:
    """Return one row per scenario and one for all scenarios.

    Lengths are means over rows, in characters other than white space, and in tokens without the end token if a
    tokenizer is given. A split may be missing, but not all splits.

    Args:
        corpus: Folder with the splits.
        tokenizer: The tokenizer that counts tokens. None leaves out the lengths in tokens.

    Raises:
        FileNotFoundError: The corpus has no split.
    """
    present = [split for split in SPLITS if any((Path(corpus) / f"{split}.jsonl{z}").is_file() for z in ("", ".gz"))]
    splits = {split: read_split(corpus, split) for split in present or ["train"]}  # read_split says that it is missing
    examples = [example for rows in splits.values() for example in rows]
    lengths: dict[str, Callable[[list[str]], float]] = {"characters": _characters}
    if tokenizer is not None:
        lengths["tokens"] = lambda texts: _tokens(tokenizer, texts)

    rows = []
    for scenario in [*scenarios_of(examples), None]:
        mine = of_scenarios(examples, scenario and [scenario])
        row: list[object] = [scenario or "all", len(mine)]
        row += [sum(scenario in (None, example.scenario) for example in split) for split in splits.values()]
        row += [measure(texts) for measure in lengths.values() for texts in _texts(mine)]
        rows.append(row)
    means = [f"{what}, {unit}" for unit in lengths for what in ("dialogue", "summary")]
    formats = dict.fromkeys(["size", *splits], ",d") | dict.fromkeys(means, ".2f")
    title = f"{corpus}: dialogues, and the mean lengths of dialogues and summaries"
    return Table(title, ["scenario", "size", *splits, *means], rows, formats)


def _texts(examples: list[Example]) -> tuple[list[str], list[str]]:
    return [example.dialogue for example in examples], [example.summary for example in examples]


def _characters(texts: list[str]) -> float:
    return sum(len("".join(text.split())) for text in texts) / len(texts)


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    return sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) / len(texts)
