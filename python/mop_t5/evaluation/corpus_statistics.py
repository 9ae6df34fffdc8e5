"""Statistics of a corpus: the size of each scenario, and the mean lengths of its dialogues and summaries."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mop_t5.data import of_scenarios, read_split, scenarios_of
from mop_t5.data.corpus import splits_in
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
    present = splits_in(corpus) or ["train"]  # read_split says that it is missing
    splits = {split: read_split(corpus, split) for split in present}
    examples = [example for rows in splits.values() for example in rows]
    lengths: dict[str, Callable[[list[str]], int]] = {"characters": lambda texts: len("".join("".join(texts).split()))}
    if tokenizer is not None:
        lengths["tokens"] = lambda texts: sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))

    rows = []
    for scenario in [*scenarios_of(examples), None]:
        mine = of_scenarios(examples, scenario and [scenario])
        texts = [[example.dialogue for example in mine], [example.summary for example in mine]]
        row: list[object] = [scenario or "all", len(mine)]
        row += [sum(scenario in (None, example.scenario) for example in split) for split in splits.values()]
        row += [measure(part) / len(mine) for measure in lengths.values() for part in texts]
        rows.append(row)
    means = [f"{part}, {unit}" for unit in lengths for part in ("dialogue", "summary")]
    formats = dict.fromkeys(["size", *splits], ",d") | dict.fromkeys(means, ".2f")
    title = f"{corpus}: dialogues, and the mean lengths of dialogues and summaries"
    return Table(title, ["scenario", "size", *splits, *means], rows, formats)
