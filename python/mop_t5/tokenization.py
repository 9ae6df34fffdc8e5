"""A tokenizer for Chinese dialogues: words by jieba, pieces of words by a small vocabulary.

Text is cut into words by `jieba.cut(text, HMM=False)`, as T5-pegasus does; each word is split into the pieces of a
BPE vocabulary trained on the corpus; a character the vocabulary lacks becomes its UTF-8 bytes. So any
value of a dialogue can be copied, and decoding gives the text back without spaces between the words. jieba is imported
at the first text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2: T5 starts the decoder with the padding id
# A space separates the words below, so a space of the text itself travels as this character.
_SPACE = "\u2423"


def segment(text: str, *, hmm: bool = False) -> list[str]:
    """The jieba words of a text; joined again they are the text. `hmm`: also guess words that the dictionary lacks."""
    try:
        import jieba
    except ImportError as error:
        raise ImportError("cutting Chinese text into words needs jieba: pip install jieba") from error
    jieba.setLogLevel("WARNING")  # it announces its dictionary on stderr otherwise
    return list(jieba.cut(text, HMM=hmm))


class JiebaTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer that segments text itself: call it with plain Chinese text.

    Make one with `train_tokenizer` and read one with `JiebaTokenizer.from_pretrained(folder)` or `load_tokenizer`.
    A text ends with `</s>`. Offsets are not offered, since they would point into the segmented text.
    """

    def _encode_plus(self, text, text_pair=None, **kwargs):
        if text_pair is not None or kwargs.get("is_split_into_words"):
            raise ValueError("JiebaTokenizer takes a text or a list of texts, no pairs and no words cut beforehand.")
        if kwargs.get("return_offsets_mapping"):
            raise ValueError("JiebaTokenizer has no offsets: they would point into the segmented text.")
        texts = [text] if isinstance(text, str) else list(text)
        prepared = [_separate(one) for one in texts]
        return super()._encode_plus(prepared[0] if isinstance(text, str) else prepared, **kwargs)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> JiebaTokenizer:
    """A `JiebaTokenizer` whose pieces are learnt from `texts`.

    `vocab_size` counts everything, the three special tokens and the 256 bytes too; a small corpus may give fewer.
    Raises ValueError for a size that leaves no room for pieces.
    """
    fixed = 3 + 256
    if vocab_size <= fixed:
        raise ValueError(f"vocab_size must be above {fixed} (special tokens and bytes), got {vocab_size}.")
    # No piece may cross the space between two words, and it is no piece itself.
    splitter = pre_tokenizers.Split(" ", "removed")
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 256, special_tokens=[PAD, EOS, UNK], show_progress=False)
    learner.train_from_iterator((_separate(text) for text in texts), trainer)

    learnt = json.loads(learner.to_str())["model"]
    # The bytes join after training: as special tokens of the trainer they would be recognised in running text.
    vocabulary = learnt["vocab"] | {f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK, byte_fallback=True))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return JiebaTokenizer(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(path_or_hub_name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone: a `JiebaTokenizer` if its folder holds one, else what transformers finds."""
    config = Path(path_or_hub_name) / "tokenizer_config.json"
    if config.is_file():
        saved = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
        if saved == JiebaTokenizer.__name__:
            return JiebaTokenizer.from_pretrained(path_or_hub_name)
    elif Path(path_or_hub_name).is_dir():
        raise FileNotFoundError(f"{path_or_hub_name} has no tokenizer_config.json. Save the tokenizer there, too.")
    return AutoTokenizer.from_pretrained(path_or_hub_name)


def _separate(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, got {type(text).__name__}.")
    return " ".join(segment(text.replace(" ", _SPACE)))
