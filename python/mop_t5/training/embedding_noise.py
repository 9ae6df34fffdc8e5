"""NEFTune for a T5: noise on the embeddings of training batches."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from transformers import PreTrainedModel
from transformers.integrations.neftune import neftune_post_forward_hook


@contextmanager
def noisy_embeddings(model: PreTrainedModel, alpha: float | None) -> Iterator[None]:
    """Add NEFTune's noise to the embeddings of the encoder and of the decoder while the model is in training mode.

    Trainer adds the noise to `model.get_input_embeddings()`. Only the methods with a prompt call this module. The
    stacks of a T5 call embeddings of their own, which share no more than the weights, so Trainer's setting alone has no
    effect.

    Args:
        model: A T5 with or without a method.
        alpha: The magnitude of the noise. None or 0 adds no noise.
    """
    stacks = (model.get_encoder(), model.get_decoder())
    tables = {model.get_input_embeddings(), *(stack.embed_tokens for stack in stacks)} if alpha else set()
    with ExitStack() as restored:
        for table in tables:
            table.neftune_noise_alpha = alpha
            restored.callback(delattr, table, "neftune_noise_alpha")
            restored.enter_context(table.register_forward_hook(neftune_post_forward_hook))
        yield
