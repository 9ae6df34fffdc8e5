"""The units that ROUGE can count in a Chinese text."""

import re
import unicodedata
from functools import lru_cache
from importlib.metadata import distribution
from typing import Any

_SUMEVAL_SYMBOLS = re.compile(r"[\.\!/_,$%\^\*\(\)\+\“\’\—\!。：？、，：:~@#￥&（）【】「」《》·]")


def raw(text: str) -> list[str]:
    """Split at white space, as packages for English do. A Chinese text is one unit."""
    return text.split()


def ascii_words(text: str) -> list[str]:
    """Keep runs of the letters a-z and of digits, as rouge_score does."""
    return re.findall("[a-z0-9]+", text.lower())


def stemmed_words(text: str) -> list[str]:
    """Keep the same runs, with Porter's stems of words longer than three letters."""
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem
    return [stem(word) if len(word) > 3 else word for word in ascii_words(text)]


def characters(text: str) -> list[str]:
    """Return every character but white space, lower-cased."""
    return [c for c in text.lower() if c.strip()]


def nfkc_characters(text: str) -> list[str]:
    """Return the characters of the text's NFKC form, in which "，" equals ","."""
    return characters(unicodedata.normalize("NFKC", text))


def jieba_words(text: str, *, hmm: bool, lower: bool = True) -> list[str]:
    """Return jieba's words of the text, which is lower-cased first. jieba's default is HMM on."""
    import jieba

    jieba.setLogLevel("ERROR")
    return [word for word in jieba.lcut(text.lower() if lower else text, HMM=hmm) if word.strip()]


def sumeval_words(text: str) -> list[str]:
    """Return jieba's words, HMM on, after the symbols that sumeval replaces by spaces; then lower-cased."""
    return [word.lower() for word in jieba_words(_SUMEVAL_SYMBOLS.sub(" ", text), hmm=True, lower=False)]


def word_pieces(text: str) -> list[str]:
    """Return the word pieces of bert-base-chinese's vocabulary, which the package cn-clip holds."""
    return _bert().encode(text, add_special_tokens=False).tokens


@lru_cache
def _bert() -> Any:
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer(str(distribution("cn-clip").locate_file("cn_clip/clip/vocab.txt")))
