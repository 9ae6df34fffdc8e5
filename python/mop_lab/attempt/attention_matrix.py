"""The prompts that ATTEMPT attends to on each task: the mean of its weights over the rows of the task."""

from collections.abc import Sequence

import torch
from mop_t5.data import Collator, Example, scenarios_of
from mop_t5.evaluation import Table
from mop_t5.evaluation.generation import encoded
from mop_t5.methods.attempt import Attempt
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_lab.finished_runs import method_of_run

_BATCH = 32  # rows whose attention is computed together


def attempt_of(model: PreTrainedModel) -> Attempt:
    """Return the attached method `attempt`. Raise ValueError for a model without it."""
    return method_of_run(model, Attempt, "no attention over prompts")


@torch.no_grad()
def attention_matrix(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_source: int,
) -> dict[str, list[float]]:
    """Return the mean weights of each task: task -> one weight per candidate of the method.

    The weight of the target is without the 1 that is always added to it, so a row sums to 1 if the weights are a
    softmax. If each row of a prompt has its own weight, the weights are averaged over the rows.

    Args:
        model: A backbone with the method attempt.
        tokenizer: The tokenizer of the backbone.
        examples: The rows.
        max_source: Dialogue tokens per row.

    Raises:
        ValueError: The model has no such weights.
    """
    method = attempt_of(model)
    tasks = list(method.scenarios)
    rows = encoded(model, tokenizer, examples, tasks, max_source=max_source, max_target=1)
    collate = Collator(tokenizer.pad_token_id, len(tasks))
    sums = torch.zeros(len(tasks), len(method.candidates), dtype=torch.float64)
    embeddings = model.get_input_embeddings()
    device = next(embeddings.parameters()).device
    for batch in DataLoader(rows, batch_size=_BATCH, collate_fn=collate):
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        weights = method.attention_of(embeddings(ids), mask, batch["scenario_ids"])
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
    """Return a table with one row per task: the number of its examples, and the weights of the candidates."""
    rows = [[task, sum(e.scenario == task for e in examples), *weights] for task, weights in matrix.items()]
    of_target = "The target's weight is shown without the 1 that its prompt has besides."
    notes = [of_target] if "target" in candidates else []
    return Table(title, ["task", "rows", *candidates], rows, dict.fromkeys(candidates, ".4f"), notes)
