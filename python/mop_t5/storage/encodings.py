"""Files of encodings: a matrix with one row per token, for each of many texts.

A file is safetensors, so it is read where it lies (memory-mapped), as far as it is asked for:

lengths    (texts,) int64: tokens of each text
checksums  (texts,) int64: CRC-32 of the bytes of each encoding
tokens     (all tokens,) int64: token ids, text after text
encodings  (all tokens, width)

The name of a file begins with the checksum of a description of what the encodings are. A folder may hold files of
several descriptions, and several files of one. Files are only added, and each is complete on the disk before it has its
name.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mop_t5.files import StrPath, checksum, failure_in_a_sentence, new_file

_NAMES = ("lengths", "checksums", "tokens", "encodings")
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_METADATA = "mop_t5.encodings"
_SIZE = torch.int64.itemsize


def text_of(tokens: Sequence[int] | Tensor) -> bytes:
    """Return token ids as bytes, to look up an encoding."""
    return _bytes(torch.as_tensor(tokens, dtype=torch.int64))


def tokens_of(text: bytes) -> list[int]:
    """Return the token ids of the result of text_of."""
    return torch.frombuffer(bytearray(text), dtype=torch.int64).tolist()


def length_of(text: bytes) -> int:
    """Return the number of token ids in the result of text_of."""
    return len(text) // _SIZE


def write_encodings(
    folder: StrPath,
    description: Mapping[str, Any],
    texts: Sequence[bytes],
    encodings: Iterable[Tensor],
    width: int,
    dtype: torch.dtype,
) -> Path:
    """Write a file of encodings, one encoding at a time.

    Args:
        folder: The folder of the file. It is made if it is missing.
        description: What determines an encoding beside its text, as JSON values.
        texts: The token ids of each text (see text_of), at least one text.
        encodings: The encoding (tokens, width) of each text, in the same order.
        width: Columns of an encoding.
        dtype: The dtype of the encodings.

    Returns:
        The path of the file.

    Raises:
        OSError: The file cannot be written.
    """
    lengths, tokens = torch.tensor([length_of(text) for text in texts]), b"".join(texts)
    total = length_of(tokens)
    shapes = ([len(texts)], [len(texts)], [total], [total, width])
    header: dict[str, Any] = {"__metadata__": {_METADATA: _json(description)}}
    end = 0
    for name, shape in zip(_NAMES, shapes, strict=True):
        of = dtype if name == "encodings" else torch.int64
        start, end = end, end + torch.Size(shape).numel() * of.itemsize
        header[name] = {"dtype": _DTYPES.get(of, "I64"), "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path = Path(folder) / f"{_begin(description)}{checksum(tokens + _bytes(lengths))[:16]}.safetensors"
    with failure_in_a_sentence("a file of encodings", folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(len(head).to_bytes(8, "little") + head + _bytes(lengths))
            place = file.tell()
            file.write(_bytes(torch.zeros_like(lengths)) + tokens)
            sums = []
            for text, encoding in zip(texts, encodings, strict=True):
                if encoding.shape != (length_of(text), width) or encoding.dtype != dtype:
                    raise RuntimeError(
                        f"an encoding must have shape {(length_of(text), width)} and dtype {dtype}; got "
                        f"{tuple(encoding.shape)} and {encoding.dtype}."
                    )
                content = _bytes(encoding)
                sums.append(zlib.crc32(content))
                file.write(content)
            file.seek(place)
            file.write(_bytes(torch.tensor(sums)))
    return path


class StoredEncodings(Mapping[bytes, Tensor]):
    """The encodings in the files of a folder that have a description, by the token ids of their texts (see text_of).

    Args:
        folder: The folder, which may be missing.
        description: What determines an encoding beside its text, as it was given to write_encodings.

    Raises:
        ValueError: A file of this description is damaged. An encoding is checked when it is read first.
    """

    def __init__(self, folder: StrPath, description: Mapping[str, Any]):
        self._where: dict[bytes, tuple[Path, Any, int, int]] = {}  # file, its encodings, first row, checksum
        self._checked: set[bytes] = set()
        for path in sorted(Path(folder).glob(f"{_begin(description)}*.safetensors")):
            self._open(path, _json(description))

    def _open(self, path: Path, description: str) -> None:
        try:
            file = safe_open(path, "pt")
            metadata = file.metadata() or {}
            if metadata.get(_METADATA) != description:
                raise ValueError("it does not say that it holds these encodings")
            lengths, sums = (file.get_tensor(name).tolist() for name in _NAMES[:2])
            tokens, encodings = _bytes(file.get_tensor("tokens")), file.get_slice("encodings")
            if len(lengths) != len(sums) or not sum(lengths) == length_of(tokens) == encodings.get_shape()[0]:
                raise ValueError("its tensors do not fit each other")
        except (SafetensorError, ValueError) as error:
            raise ValueError(_damaged(path, str(error))) from error
        start = 0
        for length, sum_ in zip(lengths, sums, strict=True):
            end = start + length
            self._where[tokens[start * _SIZE : end * _SIZE]] = path, encodings, start, sum_
            start = end

    def __getitem__(self, text: bytes) -> Tensor:
        path, encodings, start, sum_ = self._where[text]
        end = start + length_of(text)
        encoding = encodings[start:end]
        if text not in self._checked:
            if zlib.crc32(_bytes(encoding)) != sum_:
                raise ValueError(_damaged(path, f"the encoding of rows {start} to {end - 1} has changed"))
            self._checked.add(text)
        return encoding

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason.rstrip('.')}). Delete it: the next run encodes its texts again."


def _json(description: Mapping[str, Any]) -> str:
    return json.dumps(description, sort_keys=True)


def _begin(description: Mapping[str, Any]) -> str:
    return f"encodings-{checksum(_json(description).encode())[:16]}-"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
