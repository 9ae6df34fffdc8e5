"""Make a corpus of CrossWOZ: `mop-t5 corpus crosswoz`."""

from __future__ import annotations

from mop_t5.data.corpus import write_corpus
from mop_t5.data.crosswoz import PARTS, crosswoz_corpus, read_clone
from mop_t5.evaluation import show
from mop_t5.evaluation.corpus_statistics import corpus_table


def corpus_crosswoz(clone: str, output: str, parts: list[str] | None = None, overwrite: bool = False) -> None:
    """Make a corpus of a clone of thu-coai/CrossWOZ: pieces of one scenario, with the goal of the user as summary.

    Pieces of one dialogue are in one split, 8:1:1 by a hash of its id. docs/corpora.md describes how dialogues are cut,
    and which pieces are dropped.

      git clone https://github.com/thu-coai/CrossWOZ
      mop-t5 corpus crosswoz --clone CrossWOZ --output corpora/crosswoz
      mop-t5 corpus crosswoz --clone CrossWOZ --parts '[val, test]' --output corpora/crosswoz-small

    Args:
        clone: folder of the clone, or the folder in it that has train.json.zip, val.json.zip and test.json.zip, packed
            or not.
        output: folder for the corpus. It must be new or empty.
        parts: the files to take, out of "train", "val" and "test"; all if not given. Each gives rows of all splits.
        overwrite: replace a corpus in the output folder.
    """
    splits, dropped = crosswoz_corpus(read_clone(clone, PARTS if parts is None else parts))
    if not splits["train"]:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.most_common())
        raise ValueError(f"{clone} gives no training rows. Dropped pieces: {reasons or 'none'}. Take more parts.")
    splits = {split: rows for split, rows in splits.items() if rows}  # a few dialogues may be in train alone
    write_corpus(output, splits, overwrite=overwrite)
    show(corpus_table(output))
    for reason, count in dropped.most_common():
        print(f"Dropped {count}: {reason}.")
    print(f"Written to {output}: {', '.join(f'{split}.jsonl' for split in splits)}.")
