"""T5's cache of keys and values: its name, the cache of a decoder whose blocks are several experts, and given keys.

The cache is called `past_key_values` up to transformers 5.23 and `cache` from 5.24 on. transformers 5.24 still takes
the old name from a caller. 5.23 accepts `cache` without an error and decodes without a cache.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration
from transformers.cache_utils import DynamicLayer

_NAMES = ("cache", "past_key_values")
CACHE = next(name for name in _NAMES if name in inspect.signature(T5ForConditionalGeneration.forward).parameters)


def rename_cache(arguments: dict[str, Any]) -> None:
    """Store the cache among `arguments`, whichever name it has, under the name that this transformers reads.

    Raises:
        ValueError: A cache is given under both names.
    """
    given = {name: arguments.pop(name) for name in _NAMES if name in arguments}
    caches = [cache for cache in given.values() if cache is not None]
    if len(caches) > 1:
        raise ValueError("give the cache under one name, cache or past_key_values; got both.")
    if given:
        arguments[CACHE] = caches[0] if caches else None


class ExpertCache(EncoderDecoderCache):
    """Caches of a decoder with experts: a cache per expert number, and a cache for the blocks without experts.

    An expert's layers hold the rows of the batch that it runs. All beams of an example run the same experts, so a beam
    search never moves a row to another expert.
    """

    def __init__(self, experts: int):
        self.experts = tuple(EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(experts))
        self._rows: dict[tuple[int, int], Tensor | None] = {}
        super().__init__(_SelfAttentionCache(self.experts), DynamicCache())

    def of_expert(self, layer: int, expert: int, rows: Tensor | None) -> EncoderDecoderCache:
        """Return the cache that an expert of a layer uses. rows: the rows that it runs, ascending, or None for all."""
        self._rows[layer, expert] = rows
        return self.experts[expert]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each row the keys and values of the beam that it continues."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # typed as LongTensor, called with a Tensor
        for expert, cache in enumerate(self.experts):
            for half in (cache.self_attention_cache, cache.cross_attention_cache):
                for index, layer in enumerate(half.layers):
                    rows = self._rows.get((index, expert))
                    order = beam_idx if rows is None else torch.searchsorted(rows, beam_idx[rows])
                    layer.reorder_cache(order)  # type: ignore[arg-type]  # as above

    def reset(self) -> None:
        """Empty all caches."""
        super().reset()
        for cache in self.experts:
            cache.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens."""
        for cache in (self, *self.experts):
            for layer in cache.self_attention_cache.layers:
                # an expert that runs no row has no tokens
                if isinstance(layer, DynamicLayer) and layer.get_seq_length() > 0:
                    layer.crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Raise NotImplementedError."""
        raise NotImplementedError("a cache of experts cannot be repeated. Give generate the repeated inputs instead.")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Raise NotImplementedError."""
        raise NotImplementedError("a cache of experts cannot drop rows. Give generate the chosen inputs instead.")


class _SelfAttentionCache(DynamicCache):
    """The cache of the blocks without experts. Its length is the largest of its own and of the experts' caches."""

    def __init__(self, experts: tuple[EncoderDecoderCache, ...]):
        super().__init__()
        self._experts = experts

    def get_seq_length(self, layer_idx: int = 0) -> int:
        lengths = (cache.get_seq_length(layer_idx) for cache in self._experts)
        return max(super().get_seq_length(layer_idx), *lengths)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0


class CrossCache(EncoderDecoderCache):
    """Given keys and values of the cross-attentions, for one forward pass in training.

    The decoder uses them in place of maps of the encoder's outputs. The self-attentions keep nothing. Where gradient
    checkpointing is on, transformers drops every cache, and the decoder computes the keys and values again.

    Args:
        pairs: Keys and values of each layer, each (batch, heads, source, d_kv).
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]):
        cross = DynamicCache()
        for keys, values in pairs:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # `update` would copy them
            cross.layers.append(layer)
        super().__init__(_NothingKept(), cross)
        self.is_updated = dict.fromkeys(range(len(cross.layers)), True)


class _NothingKept(DynamicCache):
    """The cache of self-attentions of which no later step follows."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states
