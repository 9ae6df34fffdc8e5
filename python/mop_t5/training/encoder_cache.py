"""Encoder outputs that are computed once per dialogue and kept, for methods that act in the decoder only.

A dialogue is encoded alone: without padding, without dropout and without gradients. So its encoding is the same bit for
bit in every batch, in every order, from memory and from disk. An encoder that runs on a padded batch gives the same
values up to rounding, because matrix products of another size round in another order.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.attached_model import check_not_wrapped
from mop_t5.attachment.attention import PLAIN
from mop_t5.attachment.caches import CACHE, CrossCache
from mop_t5.attachment.encoder import acting_in_encoder, acting_on_cross_keys, cross_maps, encode, evaluating
from mop_t5.backbone.identity import hash_weights, weights_of
from mop_t5.backbone.load import BackboneShape
from mop_t5.data import EncodedExamples
from mop_t5.operations.run_folder import processes
from mop_t5.storage.encodings import StoredEncodings, length_of, text_of, tokens_of, write_encodings
from mop_t5.training.config import TrainingConfig

_GIGABYTE = 10**9
# settings of a T5 that change its encoder's outputs or its cross keys, beside its shape and weights
_SETTINGS = (
    *("feed_forward_proj", "dense_act_fn", "is_gated_act", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)


class EncoderCache:
    """The encoder outputs of some dialogues. Call `fill`, then call the cache with each batch of the training.

    Args:
        model: The T5 with its method, not wrapped. Its encoder must not change until the training ends.
        sources: The token ids of the dialogues. Equal dialogues are encoded once.
        cross: Keep also the keys and values of all cross-attentions, 2 * layers * heads * d_kv numbers per token beside
            the d_model numbers of the output.
        folder: Keep the encodings in files of this folder, which later trainings read, too. None: keep them in memory.
        gigabytes: The most that the encodings may take, in 10^9 bytes.
        bf16: Compute by bfloat16 autocast, and keep bfloat16. The maps of the decoder would round the outputs so, too.

    Raises:
        ValueError: Something acts in the encoder, or on the cross keys where `cross` is set; a dialogue has no token;
            or the encodings take more than `gigabytes`.
        TypeError: The model is wrapped.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sources: Sequence[Sequence[int]],
        *,
        cross: bool = False,
        folder: str | os.PathLike | None = None,
        gigabytes: float = 8.0,
        bf16: bool = False,
    ):
        check_not_wrapped(model)
        self._model = cast(T5, model)
        if found := acting_in_encoder(self._model):
            raise ValueError(
                f"cache_encoder needs a method that acts in the decoder only, but in the encoder act "
                f"{' and '.join(found)}. Attach mop with others='none' and without encoder_self in attention, or set "
                "cache_encoder to 'no'."
            )
        if cross and (found := acting_on_cross_keys(self._model)):
            raise ValueError(
                f"cache_cross needs fixed keys and values of the cross-attentions, but on them act "
                f"{' and '.join(found)}. Set cache_cross to false."
            )
        self._cross, self._bf16, self._folder = cross, bf16, None if folder is None else Path(folder)
        self._shape = BackboneShape.of(model)
        self._texts = list(dict.fromkeys(text_of(source) for source in sources))
        if b"" in self._texts:
            raise ValueError("sources must have at least one token each; got a dialogue of 0 tokens.")
        last_norm: Any = self._model.encoder.final_layer_norm
        self._dtype: torch.dtype = torch.bfloat16 if bf16 else last_norm.weight.dtype
        self._widths = [self._shape.d_model] + cross * 2 * self._shape.num_decoder_layers * [self._shape.inner]
        self.tokens = sum(map(length_of, self._texts))
        self._per_token: int = sum(self._widths) * self._dtype.itemsize
        self.bytes = self.tokens * self._per_token
        self._check_size(gigabytes)
        self._limit = gigabytes
        self._kept: Mapping[bytes, Tensor] = {}

    def _check_size(self, gigabytes: float) -> None:
        if self.bytes <= gigabytes * _GIGABYTE:
            return
        cures = ["Set cache_cross to false"] * self._cross + ["lower max_source"]
        cures += ["set cache_encoder to 'disk'"] * (self._folder is None)
        raise ValueError(
            f"cache_gigabytes must be at least {_gigabytes(self.bytes)}: {self._amount()} take {self.bytes:,} bytes; "
            f"got {gigabytes:g}. Raise it, if there is room. Or: {', or '.join(cures)}."
        )

    def _amount(self) -> str:
        texts = f"{len(self._texts):,} different dialogues of {self.tokens:,} tokens"
        return f"{texts}, {self._per_token:,} bytes per token,"

    def __str__(self) -> str:
        """Return one sentence on the size and the place of the encodings."""
        place = "in memory" if self._folder is None else f"in {self._folder}"
        return (
            f"Encoder cache: {self._amount()} take {_gigabytes(self.bytes)} GB {place} (limit {self._limit:g}). The "
            "encoder runs without dropout."
        )

    def fill(self, *, progress: bool = False) -> None:
        """Encode the dialogues, or those that the files of the folder lack. Every process must call this method.

        With a folder the processes share the work. In memory each process encodes and keeps all dialogues.

        Args:
            progress: Show a bar.

        Raises:
            ValueError: A file of the folder is damaged.
            OSError: The folder cannot be written, or its disk has too little room.
        """
        device = self._model.encoder.device.type
        with evaluating(self._model), torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            if self._folder is None:
                self._kept = dict(zip(self._texts, self._encoded(self._texts, progress), strict=True))
            else:
                self._kept = self._fill_folder(self._folder, progress)

    def _fill_folder(self, folder: Path, progress: bool) -> StoredEncodings:
        description, team = self._description(), processes()
        stored = StoredEncodings(folder, description)
        missing = [text for text in self._texts if text not in stored]
        team.wait_for_everyone()  # every process must have looked before a file is added
        if missing:
            self._check_room(folder, missing)
            if mine := missing[team.process_index :: team.num_processes]:
                rows = self._encoded(mine, progress)
                write_encodings(folder, description, mine, rows, sum(self._widths), self._dtype)
            team.wait_for_everyone()
            stored = StoredEncodings(folder, description)
        return stored

    def _check_room(self, folder: Path, missing: Sequence[bytes]) -> None:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        needed = sum(map(length_of, missing)) * self._per_token
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise OSError(
                f"the encoder cache needs {_gigabytes(needed)} GB more in {folder}, and its disk has "
                f"{_gigabytes(free)} GB free. Make room, or set cache_folder to a folder on another disk."
            )

    def _description(self) -> dict[str, Any]:
        """Return what determines an encoding beside its text."""
        model = self._model
        parts: list[tuple[str, torch.nn.Module]] = [("encoder", model.encoder)]
        parts += cross_maps(model) if self._cross else []
        weights = {f"{name}.{own}": tensor for name, part in parts for own, tensor in weights_of(part).items()}
        implementation = model.encoder.config._attn_implementation
        return {
            "weights": hash_weights(weights, whole=True),
            "shape": [self._shape.model_type, self._shape.num_heads, self._shape.d_kv],
            "settings": {name: getattr(model.config, name, None) for name in _SETTINGS},
            "attention": PLAIN.get(implementation, implementation),
            "cross": self._cross,
            "dtype": f"{self._dtype}{' by autocast' if self._bf16 else ''}",
            "device": model.encoder.device.type,
            "versions": [torch.__version__, transformers.__version__],
        }

    def _encoded(self, texts: Sequence[bytes], progress: bool) -> Iterator[Tensor]:
        """Yield the encoding (tokens, width) of each text, on the CPU."""
        for text in tqdm(texts, desc=f"encoding dialogues, {_gigabytes(self.bytes)} GB in all", disable=not progress):
            parts = encode(self._model, tokens_of(text), cross=self._cross)
            yield torch.cat([part.to(self._dtype) for part in parts], dim=-1).cpu()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch with `encoder_outputs` in place of `input_ids`, on the device of the model.

        With cross keys the result has a cache for the decoder, too. Outputs at padding are zero.

        Args:
            batch: A batch with `input_ids` and `attention_mask`, each (batch, source).

        Raises:
            ValueError: The cache lacks a dialogue of the batch.
        """
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
        try:
            rows = [self._kept[text_of(ids[i][mask[i]])] for i in range(len(ids))]
        except KeyError:
            raise ValueError(
                "the encoder cache lacks a dialogue of the batch. Make it with the sources of all dialogues that are "
                "trained on, cut to the same max_source, and call fill."
            ) from None
        parts = [torch.zeros(*ids.shape, width, dtype=self._dtype) for width in self._widths]
        for i, row in enumerate(rows):
            for part, values in zip(parts, row.split(self._widths, dim=-1), strict=True):
                part[i, mask[i]] = values
        hidden, *cross = (part.to(self._model.encoder.device) for part in parts)
        filled = {name: value for name, value in batch.items() if name != "input_ids"} | {"encoder_outputs": (hidden,)}
        if cross:
            heads = [part.unflatten(-1, (-1, self._shape.d_kv)).transpose(1, 2) for part in cross]
            filled[CACHE] = CrossCache(zip(heads[::2], heads[1::2], strict=True))
        return filled


def cache_of(config: TrainingConfig, model: PreTrainedModel, rows: EncodedExamples) -> EncoderCache | None:
    """Return the cache that a training asks for, not filled. None if it asks for none.

    Raises:
        ValueError: See EncoderCache.
    """
    if config.cache_encoder == "no":
        return None
    return EncoderCache(
        model,
        [rows[number]["input_ids"] for number in range(len(rows))],
        cross=config.cache_cross,
        folder=config.cache_folder,
        gigabytes=config.cache_gigabytes,
        bf16=config.bf16,
    )


def _gigabytes(size: int) -> str:
    """Return a number of bytes in 10^9 bytes, rounded up to three figures after the point."""
    return f"{-(-size // 10**6) / 1000:g}"
