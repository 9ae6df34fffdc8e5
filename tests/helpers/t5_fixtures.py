import gc
import json

import mop_t5
import pytest
import torch
from mop_t5.backbone.tokenizer import load_tokenizer, train_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus, write_examples
from transformers import T5Config


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty is filled with NaN, so that memory which is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", autouse=True)
def frozen_modules():
    """Take what is imported out of the collector's sight: every training collects, which took half a second.

    It is never put back, so that the next module collects only what is new.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a corpus of three scenarios and a backbone."""
    return make_place(tmp_path_factory.mktemp("experiments"))


def make_place(folder):
    """Write the corpus and the backbone of `place` to a folder, and return the folder."""
    corpus = synthetic_corpus(5, general=1, train=60, valid=20, test=15)
    names = ("taxi", "food", "ticket")
    corpus = {split: [row for row in rows if row.scenario in names] for split, rows in corpus.items()}
    for split in ("train", "valid", "test"):
        write_examples(folder / "corpus" / f"{split}.jsonl", corpus[split])
    tokenizer = train_tokenizer([text for row in corpus["train"] for text in (row.dialogue, row.summary)], 500)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4)
    mop_t5.build_backbone(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    return folder


def make_run(place, method, *flags, **options):
    """Train a method for one step in the folder of `place`, and return the run folder.

    The summaries differ from row to row: the random backbone is far from uniform.
    """
    if not (place / "wide").exists():
        tokenizer = load_tokenizer(place / "backbone")
        config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        mop_t5.build_backbone(config, seed=1, initializer_factor=3.0).save_pretrained(place / "wide")
        tokenizer.save_pretrained(place / "wide")
    command = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place / "wide"), "--steps", "1"]
    command += ["--batch_size", "2", "--max_source", "100", "--max_target", "6", "--method", method, *flags]
    assert main([*command, "--options", json.dumps(options), "--output", str(place / method)]) == 0
    return place / method
