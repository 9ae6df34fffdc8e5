"""Which prompts ATTEMPT attends to on which task: the mean of its weights over the rows of each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mop_t5.data import Collator, EncodedExamples, Example, scenarios_of
from mop_t5.evaluation import Table
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def attention_matrix(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_source: int,
    batch_size: int = 32,
) -> dict[str, list[float]]:
    """Task -> mean weight of each of `model.mop.candidates`. That of the target is without the 1 which it has besides,
    so a row sums to 1 where the weights are a softmax; weights of single rows of a prompt are averaged over these.

    Raises ValueError for a model whose method has no such weights.
    """
    method = getattr(model, "mop", None)
    if not hasattr(method, "attention_of"):
        name = "a plain backbone" if method is None else f"the method {method.name!r}"
        raise ValueError(f"run holds {name}, which weights no prompts. Give one of `attempt`.")
    tasks = list(model.scenarios)
    encoded = EncodedExamples(
        examples, tokenizer, tasks, source_text=method.source_text, max_source=max_source, max_target=1
    )
    collate = Collator(tokenizer.pad_token_id, len(tasks))
    sums = torch.zeros(len(tasks), len(method.candidates), dtype=torch.float64)
    device = model.get_input_embeddings().weight.device
    for batch in DataLoader(encoded, batch_size=batch_size, collate_fn=collate):
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        weights = method.attention_of(model.get_input_embeddings()(ids), mask, batch["scenario_ids"])
        if weights.dim() == 3:
            weights = weights.mean(2)
        # a target that is no candidate has a weight of 0
        sums.index_add_(0, batch["scenario_ids"], weights[:, : sums.shape[1]].double().cpu())
    return {
        task: (sums[tasks.index(task)] / sum(e.scenario == task for e in examples)).tolist()
        for task in scenarios_of(examples)
    }


def attention_table(
    title: str, matrix: dict[str, list[float]], candidates: Sequence[str], examples: Sequence[Example]
) -> Table:
    """A row a task."""
    rows = [[task, sum(e.scenario == task for e in examples), *weights] for task, weights in matrix.items()]
    notes = (
        ["The target's weight is shown without the 1 that its prompt has besides."] if "target" in candidates else []
    )
    return Table(title, ["task", "rows", *candidates], rows, dict.fromkeys(candidates, ".4f"), notes)
