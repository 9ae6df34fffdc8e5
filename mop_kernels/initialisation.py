"""Draw the factors so that W has a given variance, or fit them to a dense W."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

INITS = ("variance_matched", "compacter")
COMPACTER_RULE_STD = 0.01
NEAR_ZERO_RULE_STD = 1e-4


class DrawnLayer(nn.Module):
    """Base class of the layers. It draws their parameters, also the parameters that a transformers checkpoint lacks.

    transformers builds a model on device "meta", loads what the checkpoint holds, and puts empty memory in the place of
    the missing parameters. It leaves their initialisation to `PreTrainedModel._init_weights`, which does not know these
    layers. At the end it sets `_is_hf_initialized` on each layer, as it did on each loaded parameter: the layer then
    draws the parameters that still hold empty memory. Values that an `_init_weights` of the user has written are kept,
    unless they were written through `parameter.data`.
    """

    _was_meta = False  # True if some parameters had no memory when they were last drawn

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew. Inside transformers' `initialize_weights`, loaded parameters stay as they are."""
        self._was_meta = any(p.is_meta for p in self.parameters(recurse=False))
        self._draw()

    def _draw(self) -> None:
        raise NotImplementedError

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        super().__setattr__(name, value)
        if name == "_is_hf_initialized" and value and self._was_meta:
            self._draw_missing()

    @torch.no_grad()
    def _draw_missing(self) -> None:
        own = list(self.parameters(recurse=False))
        kept = [p for p in own if p.is_meta or getattr(p, "_is_hf_initialized", False) or _writes(p) > 0]
        if len(kept) < len(own):
            values = [p.clone() for p in kept]
            self.reset_parameters()
            for p, value in zip(kept, values):
                p.copy_(value)


def init_factors(rules: list[Tensor], locals_: list[Tensor], variance: float, init: str) -> None:
    """Draw rule and local factors (one tensor, or the two of a low-rank product) in place.

    Each entry of W sums terms products of a rule entry and a local entry, so its variance is terms * Var(rule) *
    Var(local). The locals are Glorot-uniform with gain sqrt(2). "variance_matched" scales the rules to reach
    `variance`, with Var(rule_in) = Var(rule_out). Without rules, W is the local, of one term.
    """
    local_variance = 4 / (locals_[0].shape[-2] + locals_[-1].shape[-1])
    if not rules and init == "variance_matched":
        local_variance = variance
    _draw(locals_, local_variance, lambda t: nn.init.uniform_(t, -1, 1))
    if init == "compacter":
        for rule in rules:
            nn.init.normal_(rule, std=COMPACTER_RULE_STD)
    elif rules:
        _draw(rules, variance / (rules[0].shape[-3] * local_variance), nn.init.normal_)


def init_near_zero(rules: list[Tensor], local: Tensor) -> None:
    """Draw a map so that W starts close to zero, as public code does (probably code of the MOP authors).

    Rules are N(0, 0.0001^2). local (..., terms, loc_in, loc_out) is Glorot-uniform with gain sqrt(2), seen as a matrix
    (terms*loc_in, loc_out), the shape that it has in that code.
    """
    for rule in rules:
        nn.init.normal_(rule, std=NEAR_ZERO_RULE_STD)
    terms, loc_in, loc_out = local.shape[-3:]
    bound = math.sqrt(12 / (terms * loc_in + loc_out))
    nn.init.uniform_(local, -bound, bound)


def _draw(factors: list[Tensor], variance: float, fill: Callable[[Tensor], Tensor]) -> None:
    """Fill the factors, then scale them evenly so that the mean square of their product is exactly `variance`.

    The scaling is needed because rules are small: the mean square of a 4 x 4 x 4 draw is often off by 40 %.

    While transformers loads a model, torch.nn.init leaves loaded parameters alone. Such a factor is not scaled either,
    and the other factor of the product gets the mean square that it would have if both were drawn.
    """
    drawn = [factor for factor in factors if _fills(fill, factor)]
    if len(drawn) < len(factors):
        variance = math.sqrt(variance / factors[0].shape[-1])  # mean square of one of the two factors
    if not drawn:
        return
    first, last = drawn[0].float(), drawn[-1].float()
    if len(drawn) == 1:
        mean_square = first.square().mean()
    else:  # mean square of first @ last by their Gram matrices, which broadcast over groups at no cost
        grams = (first.mT @ first) * (last @ last.mT)
        mean_square = grams.sum((-2, -1)).mean() / (first.shape[-2] * last.shape[-1])
    scale = (variance / mean_square) ** (1 / (2 * len(drawn)))
    for factor in drawn:
        factor.mul_(scale)


def _fills(fill: Callable[[Tensor], Tensor], tensor: Tensor) -> bool:
    """Call fill(tensor). Return whether it has written to the tensor."""
    before = _writes(tensor)
    fill(tensor)
    return tensor.is_inference() or _writes(tensor) > before


def _writes(tensor: Tensor) -> int:
    """Return the tensor's version, the number of its in-place operations. Inference tensors have none: return 0."""
    return 0 if tensor.is_inference() else tensor._version


def nearest_kronecker_sum(weight: Tensor, terms: int, rank: int | None, local_rank: int | None) -> dict[str, Tensor]:
    """Return the factors, by PHMLinear's names and in float64, whose W is nearest to weight (in, out).

    The norm is the Frobenius norm, and the method is the SVD of the rearranged weight (Van Loan and Pitsianis). With
    rank or local_rank, each factor is then replaced by its nearest matrix of that rank. Terms and ranks that `weight`
    cannot have are absent. A factor may therefore be smaller than PHMLinear's, which is zero in the rest.
    """
    loc_in, loc_out = weight.shape[0] // terms, weight.shape[1] // terms
    blocks = weight.double().reshape(terms, loc_in, terms, loc_out)
    rearranged = blocks.permute(0, 2, 1, 3).reshape(terms * terms, loc_in * loc_out)
    rule, local = _split_by_svd(rearranged, terms)
    factors = {"rule": rule.T.reshape(-1, terms, terms), "local": local.reshape(-1, loc_in, loc_out)}
    if rank is not None:
        factors["rule_in"], factors["rule_out"] = _split_by_svd(factors.pop("rule"), rank)
    if local_rank is not None:
        factors["local_left"], factors["local_right"] = _split_by_svd(factors.pop("local"), local_rank)
    return factors


def _split_by_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the nearest matrix of this rank as left (..., m, rank) @ right (..., rank, n), both of equal scale."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * v[..., :rank, :]
