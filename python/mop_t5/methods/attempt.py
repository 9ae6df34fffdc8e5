"""ATTEMPT: a prompt per example, mixed from frozen source prompts and a trained prompt (Asai et al. 2022, sec. 3).

    x = max over positions of X    p_j = max over the rows of P_j    h = G(x) = LayerNorm(SiLU(x W_down) W_up)
    a_j = softmax_j(p_j . h / T)   P(X) = P_target + sum_j a_j P_j,  j over the sources and the target

X are the embeddings of the text. P(X) stands in front of them as in prompt-tuning. G is shared by all tasks, which are
the scenarios here; each has a target prompt.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

import mop_kernels
from mop_t5.attachment.method import MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, check_names, one_of, within
from mop_t5.methods import register
from mop_t5.methods.parts.precision import full_precision
from mop_t5.methods.parts.prompt_method import PromptMethod, draw_vocabulary
from mop_t5.methods.parts.saved import below, read_saved
from mop_t5.storage import prompt_library

_FREQUENT = 5000  # number of first ids from which a prompt of random words is drawn, as in the public code
_G = "mop.attention."


@dataclass(frozen=True)
class AttemptConfig(MethodConfig):
    """Fields of the method "attempt".

    Args:
        scenarios: names of the tasks. Each has a target prompt; none means one task.
        library: folder of a prompt library (mop_t5.storage.prompt_library) that holds the source prompts.
        source_prompts: names of the source prompts in the library, in the order of the attention weights. They are
            copied, so that an attached or saved method does not need the library.
        untrained_sources: number of source prompts of random words, in place of a library. A control: it shows the
            value of trained source prompts.
        prompt_length: rows of every prompt.
        attention: how the prompts are weighted:
            "sub": by G, one weight for all rows of a prompt.
            "token": by G, one weight per row. a_jl is the softmax over j of p_jl . h / T, where p_jl is row l of P_j.
            "constant": every weight is 1/(sources + 1), also the weight of the target. The public code does this.
            "none": 1/sources for each source, 0 for the target. This is the paper's ablation.
        use_target: have a target prompt. If False, only G is trained, and P(X) = sum_j a_j P_j over sources.
        pool_padding: include padding in the maximum over positions, as in the public code. The prompt of an example
            then depends on the other examples of its batch.
        temperature: T; d_model * e if None.
        bottleneck: width between W_down and W_up.
        init: where target prompts start: "source", as a source prompt; "vocabulary", embeddings of distinct tokens out
            of the first 5,000; "uniform", between -0.5 and 0.5.
        init_source: name of the source prompt for init="source". None: the first.
        prior: folder of a saved "attempt" on the same backbone, whose G is the start of G here.
        train_attention: train G. False: G stays as `prior` holds it.
    """

    library: str | None = None
    source_prompts: tuple[str, ...] = ()
    untrained_sources: Annotated[int, at_least(0)] = 0
    prompt_length: Annotated[int, at_least(1)] = 100
    attention: Annotated[str, one_of("sub", "token", "constant", "none")] = "sub"
    use_target: bool = True
    pool_padding: bool = False
    temperature: Annotated[float | None, within(above=0)] = None
    bottleneck: Annotated[int, at_least(1)] = 100
    init: Annotated[str, one_of("source", "vocabulary", "uniform")] = "source"
    init_source: str | None = None
    prior: str | None = None
    train_attention: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_names("source_prompts", self.source_prompts)
        if bool(self.source_prompts) == bool(self.untrained_sources):
            raise ValueError(
                "source_prompts must name at least one prompt of the library, unless untrained_sources is given in its "
                f"place; got {list(self.source_prompts)} and untrained_sources={self.untrained_sources}."
            )
        if bool(self.source_prompts) != (self.library is not None):
            raise ValueError(
                f"library must be given where source_prompts are, and only there; got {self.library!r}. See `mop-t5 "
                "prompts list`."
            )
        if self.init_source is not None and (self.init != "source" or self.init_source not in self.source_prompts):
            raise ValueError(
                f"init_source must be one of source_prompts ({', '.join(self.source_prompts)}), with init='source'; "
                f"got {self.init_source!r} and init={self.init!r}."
            )
        if self.prior is not None and not self.has_attention:
            raise ValueError(f"prior is a G, and attention={self.attention!r} has none. Use 'sub' or 'token'.")
        if not self.train_attention and self.prior is None:
            raise ValueError("train_attention=False keeps the G of another attempt. Name its folder by prior.")
        if not self.use_target and not (self.has_attention and self.train_attention):
            raise ValueError(
                "use_target=False trains nothing unless G is trained. Set use_target=True or train_attention=True."
            )

    def sources(self) -> dict[str, list[Path]]:
        """Return the folders of the source prompts and of the prior, by their field."""
        prompts = [Path(self.library) / name for name in self.source_prompts] if self.library else []
        named = {"library": prompts, "prior": [Path(self.prior)] if self.prior else []}
        return {name: paths for name, paths in named.items() if paths}

    @property
    def has_attention(self) -> bool:
        """True if G weights the prompts."""
        return self.attention in ("sub", "token")


class PromptAttention(nn.Module):
    """G: (batch, d) -> (batch, d)."""

    def __init__(self, d: int, bottleneck: int, **where: Unpack[Where]):
        super().__init__()
        self.down = nn.Linear(d, bottleneck, bias=False, **where)
        self.up = nn.Linear(bottleneck, d, bias=False, **where)
        self.norm = nn.LayerNorm(d, eps=1e-5, **where)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return h, (batch, d), of the pooled text (batch, d)."""
        return self.norm(self.up(F.silu(self.down(pooled))))


@register
class Attempt(PromptMethod[AttemptConfig]):
    """ATTEMPT, with its prompts and G.

    source_prompts: (sources, length, d_model), a buffer: frozen, and saved with the method. target_prompts: (tasks,
    length, d_model), or None. attention: G, or None.
    """

    source_prompts: Tensor
    target_prompts: nn.Parameter | None
    attention: PromptAttention | None

    name = "attempt"
    Config = AttemptConfig
    groups: ClassVar = {"prompts": ("target_prompts",), "attention": ("attention",)}

    def __init__(self, config: AttemptConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        self.distinguishes_scenarios = config.use_target and len(config.scenarios) > 1
        self.temperature = shape.d_model * math.e if config.temperature is None else float(config.temperature)
        sources, tasks = len(config.source_prompts) or config.untrained_sources, len(config.scenarios) or 1
        size = (config.prompt_length, shape.d_model)
        self.register_buffer("source_prompts", torch.zeros(sources, *size, **where))
        self.target_prompts = self.attention = None
        if config.use_target:
            self.target_prompts = nn.Parameter(torch.empty(tasks, *size, **where).uniform_(-0.5, 0.5))
        if config.has_attention:
            self.attention = PromptAttention(shape.d_model, config.bottleneck, **where)
            if not config.train_attention:
                _make_buffers(self.attention)

    @torch.no_grad()
    def initialise(self, model: T5) -> None:
        """Copy the source prompts, and set the start of the target prompts and of G."""
        c = self.config
        if c.library is not None:
            self.source_prompts.copy_(prompt_library.read_for(model, c.library, c.source_prompts, c.prompt_length))
        else:
            draw_vocabulary(self.source_prompts, model, "prompt_length", _FREQUENT)
        if self.target_prompts is not None and c.init == "source":
            first = 0 if c.init_source is None else c.source_prompts.index(c.init_source)
            self.target_prompts.copy_(self.source_prompts[first])
        elif self.target_prompts is not None and c.init == "vocabulary":
            draw_vocabulary(self.target_prompts, model, "prompt_length", _FREQUENT)
        if self.attention is not None and c.prior is not None:
            self.attention.load_state_dict(self._prior(model, c.prior))

    def _prior(self, model: T5, folder: str) -> dict[str, Tensor]:
        """Return the state of the prior's G."""
        _, tensors = read_saved(model, self.name, "prior", folder)
        found = below(_G, tensors)
        if not found:
            raise ValueError(f"prior {folder!r} has no G, because its attention is fixed. Name another.")
        width = len(found["down.weight"])
        if width != self.config.bottleneck:
            raise ValueError(f"bottleneck must be that of prior {folder!r}, {width}; got {self.config.bottleneck}.")
        return found

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the prompts that have an attention weight, in order."""
        untrained = (f"untrained {i + 1}" for i in range(self.config.untrained_sources))
        return (*self.config.source_prompts, *untrained, *(["target"] if self.config.use_target else []))

    def prepend(self, embeddings: Tensor, mask: Tensor | None, scenario_ids: Tensor | None) -> Tensor:
        """Return the prompt and the embeddings: (batch, prompt + source, d_model)."""
        return self._mix(embeddings, mask, scenario_ids)[0]

    @torch.no_grad()
    def attention_of(
        self, embeddings: Tensor, mask: Tensor | None = None, scenario_ids: Tensor | None = None
    ) -> Tensor:
        """Return the weights a_j of the prompts for each example.

        Args:
            embeddings: Embeddings of the text, model.get_input_embeddings()(input_ids).
            mask: (batch, source) or None.
            scenario_ids: (batch,), or None for the only task.

        Returns:
            (batch, candidates), or (batch, candidates, length) where each row has its own weights. P(X) adds the target
            once more with weight 1, which is not in these weights.
        """
        scenario_ids = self.check_scenario_ids(scenario_ids, len(embeddings), embeddings.device)
        return self._mix(embeddings, mask, scenario_ids)[1]

    def _mix(self, embeddings: Tensor, mask: Tensor | None, scenario_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the prompts in front of the embeddings, and the weights."""
        token_mask = None if mask is None or self.config.pool_padding else mask.bool()
        # in the parameters' own precision: autocast would round the text, too
        with full_precision(embeddings):
            x = embeddings.to(self.source_prompts.dtype)
            if scenario_ids is None:
                scenario_ids = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            g, targets = self.attention, self.target_prompts
            if g is not None and targets is not None and self.config.attention == "sub":
                maps = (g.down.weight.T, g.up.weight.T, g.norm.weight, g.norm.bias)
                prompts = (self.source_prompts, self.only_trained(targets))
                prefixed, weights = mop_kernels.attempt_mix(
                    x, token_mask, *prompts, scenario_ids, *maps, self.temperature
                )
            else:
                prefixed, weights = self._plain(x, token_mask, scenario_ids)
            return prefixed.to(embeddings.dtype), weights

    def _plain(self, x: Tensor, mask: Tensor | None, scenario_ids: Tensor) -> tuple[Tensor, Tensor]:
        sources, targets = self.source_prompts, None
        if self.target_prompts is not None:
            # advanced indexing: its backward on a GPU is a sorted sum; the backward of index_select has no fixed order
            targets = self.only_trained(self.target_prompts)[scenario_ids]
        weights = self._weights(x, mask, targets)
        by_row = weights if weights.dim() == 3 else weights[..., None].expand(-1, -1, sources.shape[1])
        prompt = torch.einsum("btm,tmd->bmd", by_row[:, : len(sources)], sources)
        if targets is not None:
            prompt = prompt + (1 + by_row[:, -1, :, None]) * targets
        return torch.cat([prompt, x], dim=1), weights

    def _weights(self, x: Tensor, mask: Tensor | None, targets: Tensor | None) -> Tensor:
        """Return (batch, candidates), or (batch, candidates, length) of the attention "token".

        targets: (batch, length, d).
        """
        sources, attention = self.source_prompts, self.config.attention
        if self.attention is None:
            count = len(sources)
            share, own = (1 / (count + 1), 1 / (count + 1)) if attention == "constant" else (1 / count, 0.0)
            return x.new_tensor([share] * count + [own]).expand(len(x), -1)
        query = self.attention(_pooled(x, mask))
        if attention == "sub":
            sources = sources.amax(1, keepdim=True)
        scores = torch.einsum("tmd,bd->btm", sources, query)
        if targets is not None:
            scores = torch.cat([scores, torch.einsum("bmd,bd->bm", targets, query)[:, None]], dim=1)
        weights = (scores / self.temperature).softmax(1)
        return weights if attention == "token" else weights[..., 0]


def _pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the maximum of x over the unmasked positions, (batch, d). It is 0 if all positions are masked."""
    if mask is None:
        return x.amax(1)
    counts = mask.bool()[..., None]
    return x.masked_fill(~counts, -math.inf).amax(1).masked_fill(~counts.any(1), 0)


def _make_buffers(module: nn.Module) -> None:
    """Turn all parameters into buffers, because a method trains all its parameters."""
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            delattr(owner, name)
            owner.register_buffer(name, parameter.detach())
