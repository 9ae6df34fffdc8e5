"""Vectors of tasks, for the routers: mean encodings of their texts, and the Fisher information of small adapters."""

import tempfile
from collections.abc import Sequence
from typing import Any

import mop_t5
import torch
from mop_t5.data import Collator, Example
from mop_t5.evaluation.generation import encoded
from mop_t5.training import TrainingConfig, train
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def text_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[Example]],
    *,
    max_source: int = 512,
    batch_size: int = 32,
) -> torch.Tensor:
    """Return the mean encoding of each task's rows. The encoding of a row is the mean of the encoder's last states.

    The public code takes the last decoder states of BART, and counts padding as tokens. This function does neither.

    Args:
        model: A plain backbone.
        tokenizer: The tokenizer of the backbone.
        rows: The examples of each task.
        max_source: Dialogue tokens per row.
        batch_size: Rows per batch.

    Returns:
        (tasks, d_model).
    """
    model.eval()
    vectors = []
    for examples in rows:
        total = torch.zeros(model.config.d_model, device=model.device)
        texts = encoded(model, tokenizer, examples, None, max_source=max_source)
        for batch in DataLoader(texts, batch_size, collate_fn=Collator(tokenizer.pad_token_id)):
            ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
            states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            total += ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).sum(0)
        vectors.append(total / len(examples))
    return torch.stack(vectors).cpu()


def small_adapters(d_model: int) -> dict[str, Any]:
    """Return the fields of the method "adapter" for the Fisher information: 8 hidden units, after each sub-layer.

    The public code of the poster starts the adapters at ones, so that all units stay equal. Here they start at random.
    """
    places = ("self_attention", "cross_attention", "feed_forward")
    reduction = max(1, d_model // 8)
    return {"places": places, "reduction": reduction, "activation": "gelu", "layer_norms": False}


def fisher_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[Example]],
    training: TrainingConfig,
) -> torch.Tensor:
    """Return the diagonal of the Fisher information of the matrices of small adapters, task by task.

    The adapters are tuned anew on the rows of each task, and a line of progress is printed. Then the squared gradients
    of the loss of each row, by itself and without dropout, are averaged over the rows. Biases are left out.

    Args:
        model: A plain backbone. It is plain again afterwards.
        tokenizer: The tokenizer of the backbone.
        rows: The examples of each task.
        training: How to tune the adapters.

    Returns:
        (tasks, numbers).
    """
    vectors = []
    for number, examples in enumerate(rows, start=1):
        task = examples[0].scenario
        print(f"[{number}/{len(rows)}] {task}: {training.steps} steps on {len(examples)} rows")
        torch.manual_seed(training.seed)  # every task starts from the same values
        mop_t5.attach(model, "adapter", scenarios=[task], **small_adapters(model.config.d_model))
        with tempfile.TemporaryDirectory() as folder:
            train(model, tokenizer, examples, training, output=folder, progress=False)
        vectors.append(_fisher(model, tokenizer, examples, training))
        mop_t5.detach(model)
    return torch.stack(vectors)


def matrices_of(method: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of a method, without the biases."""
    return [p for name, p in method.named_parameters() if p.dim() > 1 and "bias" not in name]


def _fisher(model, tokenizer, examples: Sequence[Example], training: TrainingConfig) -> torch.Tensor:
    matrices = matrices_of(model.mop)
    totals = [torch.zeros_like(p) for p in matrices]
    lengths = {"max_source": training.max_source, "max_target": training.max_target}
    rows = encoded(model, tokenizer, examples, None, **lengths)
    for batch in DataLoader(rows, 1, collate_fn=Collator(tokenizer.pad_token_id)):
        loss = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss
        for total, gradient in zip(totals, torch.autograd.grad(loss, matrices)):
            total += gradient.square()
    return torch.cat([total.flatten() for total in totals]).cpu() / len(examples)


def principal_components(vectors: torch.Tensor, width: int) -> torch.Tensor:
    """Return the vectors on their principal components. Each vector is scaled to length 1 before.

    Args:
        vectors: (tasks, numbers).
        width: The number of components, at most the number of tasks - 1.

    Returns:
        (tasks, components), with a variance of 1 on average.

    Raises:
        ValueError: There are fewer than two tasks.
    """
    from sklearn.decomposition import PCA

    if len(vectors) < 2:
        raise ValueError(f"principal components need at least 2 tasks; got {len(vectors)}. Use kind text or random.")
    directions = torch.nn.functional.normalize(vectors.double(), dim=1)
    components = PCA(min(width, len(vectors) - 1), svd_solver="full").fit_transform(directions.numpy())
    return torch.from_numpy(components / components.std()).float()
