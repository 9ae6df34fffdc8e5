"""SPoT: a prompt starts as the source prompts that are most similar to it (Vu et al. 2022; its use in ATTEMPT, sec. 4).

The similarity is measured on a first version of the prompt, trained for a few epochs on its own task.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mop_t5.checks import check_choice

# (length, d), (sources, length, d) -> (sources,)
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # cosine of the mean rows: the paper of SPoT compares tasks so
    "avgpool_cosine": lambda target, sources: F.cosine_similarity(sources.mean(1), target.mean(0)[None], dim=-1),
    # mean cosine over all pairs of rows: the other measure of the same paper
    "pairwise_cosine": lambda target, sources: (
        F.normalize(sources, dim=-1).mean(1) @ F.normalize(target, dim=-1).mean(0)
    ),
    # sum of the cosines row by row: the public code of ATTEMPT weights sources by this sum
    "sum_token_cosine": lambda target, sources: F.cosine_similarity(sources, target[None], dim=-1).sum(1),
    # cosine of the flattened prompts
    "flat_cosine": lambda target, sources: F.cosine_similarity(sources.flatten(1), target.flatten()[None], dim=-1),
}


def similarities(target: Tensor, sources: Tensor, measure: str = "avgpool_cosine") -> Tensor:
    """Return the similarity of a prompt (length, d) to each of the source prompts (sources, length, d): (sources,).

    Raises:
        ValueError: The shapes do not fit, or `measure` is not in SIMILARITIES.
    """
    check_choice("measure", measure, SIMILARITIES)
    if target.dim() != 2 or sources.shape[1:] != target.shape:
        raise ValueError(
            f"target must have shape (length, d) and sources (sources, length, d); got {tuple(target.shape)} and "
            f"{tuple(sources.shape)}. All prompts must have one length."
        )
    return SIMILARITIES[measure](target, sources)


def start(target: Tensor, sources: Tensor, measure: str = "avgpool_cosine", top: int = 1) -> Tensor:
    """Return the `top` most similar source prompts (0: all), mixed in proportion to their similarity: (length, d).

    top=1 returns the most similar prompt itself (SPoT-t). top=0 and "sum_token_cosine" give the mixture of ATTEMPT's
    public code.

    Raises:
        ValueError: The similarities do not sum to more than 0, or `similarities` raises.
    """
    similarity = similarities(target, sources, measure)
    best = similarity.topk(min(top or len(sources), len(sources))).indices
    if len(best) == 1:
        return sources[best[0]].clone()
    chosen = similarity[best]
    if not chosen.sum() > 0:
        raise ValueError(
            f"the similarities of the target to {len(best)} source prompts sum to {chosen.sum():.3g}, so they are no "
            "weights. Mix fewer: the most similar one (top=1) needs none."
        )
    return torch.einsum("t,tmd->md", chosen / chosen.sum(), sources[best])
