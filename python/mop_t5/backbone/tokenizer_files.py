"""What reads the files of a tokenizer, in a folder or on the hub."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import transformers
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerBase, T5Tokenizer

WHAT_IS_NEEDED = (
    "A folder needs tokenizer.json, spiece.model, or a vocab.txt whose class is named in tokenizer_config.json: "
    '"tokenizer_class": "BertTokenizer". Of the published files of T5-pegasus `mop-t5 convert` makes such a folder.'
)
_SENTINELS = 100  # <extra_id_0> to <extra_id_99>, which T5 adds behind a vocabulary


def class_of_transformers(name: str, place: str) -> type[PreTrainedTokenizerBase]:
    """Return the class of transformers that a folder without tokenizer.json and spiece.model names.

    Raises ValueError for a name that transformers does not have, and for the classes that read those files.
    """
    name = name.removesuffix("Fast")
    found = getattr(transformers, name, None) if name else None
    known = isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
    if not known or found in (T5Tokenizer, transformers.PreTrainedTokenizer):
        of_class = f" of the class {name}" if name else ""
        unknown = "" if known or not name else f", which transformers {transformers.__version__} does not know"
        raise ValueError(f"{place!r} has no files of a tokenizer{of_class}{unknown}. {WHAT_IS_NEEDED}")
    return found


def read_sentencepiece(
    path_or_hub_name: str, pieces: Path, extra_ids: int | None, vocab_size: int | None
) -> T5Tokenizer:
    """Return the tokenizer of a spiece.model, as sentencepiece itself reads a text.

    Args:
        path_or_hub_name: Where it belongs.
        pieces: The file.
        extra_ids: Number of sentinels to add behind the vocabulary. None for as many as there is room for, up to 100.
        vocab_size: Number of embeddings of the backbone. None if it is not known.

    Raises:
        ImportError: A package that reads the file is missing.
    """
    packages = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [package for package, module in packages.items() if not _is_installed(module)]
    if missing:
        raise ImportError(
            f"reading its spiece.model needs {' and '.join(missing)}, which belongs to the extra mop-kernels[t5]: "
            f"pip install {' '.join(missing)}"
        )
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(pieces))
    if extra_ids is None:  # the vocabularies of mT5 and umT5 have no room for sentinels
        room = _SENTINELS if vocab_size is None else vocab_size - processor.get_piece_size()
        extra_ids = min(_SENTINELS, max(0, room))
    tokenizer = T5Tokenizer.from_pretrained(path_or_hub_name, extra_ids=extra_ids)
    if any(map(processor.is_byte, range(processor.get_piece_size()))):
        _read_unknown_characters_as_bytes(tokenizer)
    return tokenizer


def _read_unknown_characters_as_bytes(tokenizer: T5Tokenizer) -> None:
    # the vocabularies of mT5 and umT5 have 256 bytes for this, of which T5Tokenizer of transformers 5 makes no use
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    vocabulary = [(piece, score) for piece, score in model["vocab"]]
    backend.model = models.Unigram(vocabulary, unk_id=model["unk_id"], byte_fallback=True)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder])


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False
