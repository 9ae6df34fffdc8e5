"""The name of T5's key-value cache: `past_key_values` up to transformers 5.23, `cache` from 5.24 on.

transformers 5.24 still takes the old name from a caller. 5.23 takes `cache` without a word, and decodes without one.
"""

import inspect
from typing import Any

from transformers import T5ForConditionalGeneration

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
