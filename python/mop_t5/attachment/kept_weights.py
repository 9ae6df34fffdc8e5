"""Protection of the embeddings and the output head of a T5 while a method is attached."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mop_t5.backbone.checkpoint import EMBEDDINGS, HEAD
from mop_t5.backbone.load import is_untied

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration as _T5  # MT5 and UMT5 have the same attributes
else:
    _T5 = object


class KeptWeights(_T5):
    """Mixed into the class of an attached model, before the class of transformers."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the weights that the backbone ties. Keep an untied head: transformers would replace it by the embeddings.

        Trainer calls this after it has loaded a checkpoint.
        """
        head = self.lm_head.weight if is_untied(self) else None
        super().tie_weights(*args, **kwargs)
        if head is not None:
            self.lm_head.weight = head

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> torch.nn.Embedding:
        """Return the embeddings if their size is right already, and raise RuntimeError otherwise."""
        rows = self.shared.num_embeddings
        wanted = rows if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            wanted += -wanted % pad_to_multiple_of
        if wanted != rows:
            raise RuntimeError(
                f"the embeddings have {rows} rows and cannot get {wanted} while a method is attached: it was made for "
                "this backbone. Call mop_t5.detach, resize_token_embeddings, then mop_t5.attach."
            )
        return self.shared

    def set_input_embeddings(self, *args: Any, **kwargs: Any) -> None:
        """Raise RuntimeError: the method was made for this backbone. set_output_embeddings does the same."""
        raise RuntimeError(
            "embeddings and head cannot be replaced while a method is attached: it was made for this backbone. Call "
            "mop_t5.detach, replace them, then mop_t5.attach."
        )

    set_output_embeddings = set_input_embeddings

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load values as torch does.

        Raises:
            ValueError: The head in `state_dict` differs from the embeddings, and this model ties its head to them.
        """
        embeddings, head = (state_dict.get(name) for name in (EMBEDDINGS[0], HEAD))
        if not is_untied(self) and embeddings is not None and head is not None and not _equal(embeddings, head):
            raise ValueError(
                f"state_dict has a {HEAD} of its own, and the head of this model is tied to its embeddings, which "
                "would be overwritten by it. Load the backbone with mop_t5.load_backbone, or build it with "
                "tie_word_embeddings=False."
            )
        return super().load_state_dict(state_dict, *args, **kwargs)


def _equal(embeddings: Tensor, head: Tensor) -> bool:
    if embeddings is head or embeddings.is_meta or head.is_meta:
        return True
    return embeddings.shape == head.shape and torch.equal(embeddings, head.to(embeddings))
