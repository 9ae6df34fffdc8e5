"""ATTEMPT: a prompt for every example, mixed from frozen source prompts and a trained one (Asai et al. 2022, sec. 3).

    x = max over positions of X    p_j = max over the rows of P_j    h = G(x) = LayerNorm(SiLU(x W_down) W_up)
    a_j = softmax_j(p_j . h / T)   P(X) = P_target + sum_j a_j P_j,  j over the sources and the target

X are the embeddings of the text. P(X) stands in front of them as in prompt-tuning. G is shared by all tasks, which are
the scenarios here; each has a target prompt.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import mop_kernels
from mop_t5.attachment.additions import Additions
from mop_t5.attachment.method import Method, MethodConfig
from mop_t5.backbone.identity import check_same_backbone, weights_of
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_bool, check_choice, check_int, check_positive, check_scenarios
from mop_t5.methods import register
from mop_t5.methods.prompt_tuning import vocabulary_rows
from mop_t5.storage import adapter_folder, prompt_library

_FREQUENT = 5000  # ids that a prompt of random words is drawn from, as in the public code
_G = "mop.attention."


@dataclass(frozen=True)
class AttemptConfig(MethodConfig):
    """Fields of the method "attempt".

    scenarios: names of the tasks. Each has a target prompt; none means one task.
    library: folder of a prompt library (mop_t5.storage.prompt_library) that holds the source prompts.
    source_prompts: their names there, in the order of the attention weights. They are copied: what is attached or saved
        does not need the library any more.
    untrained_sources: in place of a library, so many source prompts of random words; a control, which shows what it is
        worth that the others were trained.
    prompt_length: rows of every prompt.
    attention: how the prompts are weighted:
        "sub", by G, all rows of a prompt alike;
        "token", by G, each row on its own: a_jl is the softmax over j of p_jl . h / T, p_jl being row l of P_j;
        "constant", 1/(sources + 1) each, the target too, as in the public code;
        "none", 1/sources each and the target not, the paper's ablation.
    use_target: whether there is a target prompt. Without one G alone is trained, and P(X) = sum_j a_j P_j over sources.
    pool_padding: whether the maximum over positions takes in padding, as in the public code. With it the prompt of an
        example depends on what else is in its batch.
    temperature: T; d_model * e if None.
    bottleneck: width between W_down and W_up.
    init: where target prompts start: "source", as a source prompt; "vocabulary", embeddings of distinct tokens out of
        the first 5,000; "uniform", between -0.5 and 0.5.
    init_source: name of that source prompt; the first if None.
    prior: folder of a saved "attempt" on the same backbone, whose G is the start of this one's.
    train_attention: whether G is trained. Without, it stays what prior holds.
    """

    library: str | None = None
    source_prompts: tuple[str, ...] = ()
    untrained_sources: int = 0
    prompt_length: int = 100
    attention: str = "sub"
    use_target: bool = True
    pool_padding: bool = False
    temperature: float | None = None
    bottleneck: int = 100
    init: str = "source"
    init_source: str | None = None
    prior: str | None = None
    train_attention: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._set("source_prompts", check_scenarios(self.source_prompts, "source_prompts"))
        for name in ("library", "init_source", "prior"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string or None; got {value!r}.")
        check_int("untrained_sources", self.untrained_sources, 0)
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
        check_int("prompt_length", self.prompt_length, 1)
        check_choice("attention", self.attention, ("sub", "token", "constant", "none"))
        for name in ("use_target", "pool_padding", "train_attention"):
            check_bool(name, getattr(self, name))
        if self.temperature is not None:
            check_positive("temperature", self.temperature)
        check_int("bottleneck", self.bottleneck, 1)
        check_choice("init", self.init, ("source", "vocabulary", "uniform"))
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
            raise ValueError("use_target=False leaves nothing to train without a G that is trained.")

    def sources(self) -> dict[str, list[Path]]:
        prompts = [Path(self.library) / name for name in self.source_prompts] if self.library else []
        named = {"library": prompts, "prior": [Path(self.prior)] if self.prior else []}
        return {name: paths for name, paths in named.items() if paths}

    @property
    def has_attention(self) -> bool:
        return self.attention in ("sub", "token")


class PromptAttention(nn.Module):
    """G: (batch, d) -> (batch, d)."""

    def __init__(self, d: int, bottleneck: int, device, dtype):
        super().__init__()
        self.down = nn.Linear(d, bottleneck, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(bottleneck, d, bias=False, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(d, eps=1e-5, device=device, dtype=dtype)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.norm(self.up(F.silu(self.down(pooled))))


@register
class Attempt(Method):
    """source_prompts: (sources, length, d_model), a buffer: frozen, and saved with the method.
    target_prompts: (tasks, length, d_model), or None. attention: G, or None."""

    name = "attempt"
    Config = AttemptConfig
    has_prompt = True

    def __init__(self, config: AttemptConfig, shape: BackboneShape, device=None, dtype=None):
        super().__init__(config, shape)
        self.temperature = shape.d_model * math.e if config.temperature is None else float(config.temperature)
        sources, tasks = len(config.source_prompts) or config.untrained_sources, len(config.scenarios) or 1
        size = (config.prompt_length, shape.d_model)
        self.register_buffer("source_prompts", torch.zeros(sources, *size, device=device, dtype=dtype))
        self.target_prompts = self.attention = None
        if config.use_target:
            self.target_prompts = nn.Parameter(
                torch.empty(tasks, *size, device=device, dtype=dtype).uniform_(-0.5, 0.5)
            )
        if config.has_attention:
            self.attention = PromptAttention(shape.d_model, config.bottleneck, device, dtype)
            if not config.train_attention:
                _make_buffers(self.attention)

    @torch.no_grad()
    def initialise(self, model) -> None:
        config = self.config
        if config.source_prompts:
            names = config.source_prompts
            self.source_prompts.copy_(prompt_library.read_for(model, config.library, names, config.prompt_length))
        else:
            for prompt in self.source_prompts:
                prompt.copy_(vocabulary_rows(model, "prompt_length", config.prompt_length, _FREQUENT))
        if config.use_target and config.init == "source":
            first = 0 if config.init_source is None else config.source_prompts.index(config.init_source)
            self.target_prompts.copy_(self.source_prompts[first])
        elif config.use_target and config.init == "vocabulary":
            for prompt in self.target_prompts:
                prompt.copy_(vocabulary_rows(model, "prompt_length", config.prompt_length, _FREQUENT))
        if config.prior is not None:
            self.attention.load_state_dict(self._prior(model))

    def _prior(self, model) -> dict[str, torch.Tensor]:
        """The state of the prior's G."""
        folder = self.config.prior
        description, tensors = adapter_folder.read(folder)
        if description["method"] != self.name:
            raise ValueError(f"prior {folder!r} holds the method {description['method']!r}; expected {self.name!r}.")
        check_same_backbone(model, description["backbone"], weights_of(model), folder)
        found = {name.removeprefix(_G): tensor for name, tensor in tensors.items() if name.startswith(_G)}
        if not found:
            raise ValueError(f"prior {folder!r} has no G, because its attention is fixed. Name another.")
        width = len(found["down.weight"])
        if width != self.config.bottleneck:
            raise ValueError(f"bottleneck must be that of prior {folder!r}, {width}; got {self.config.bottleneck}.")
        return found

    @property
    def distinguishes_scenarios(self) -> bool:
        return self.config.use_target and len(self.scenarios) > 1

    @property
    def candidates(self) -> tuple[str, ...]:
        """What the attention weights belong to, in their order."""
        untrained = (f"untrained {i + 1}" for i in range(self.config.untrained_sources))
        return (*self.config.source_prompts, *untrained, *(["target"] if self.config.use_target else []))

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        return Additions(prompt=self._prepend)

    def _prepend(self, embeddings, mask, scenario_ids) -> torch.Tensor:
        """(batch, prompt + source, d_model)"""
        return self._mix(embeddings, mask, scenario_ids)[0]

    @torch.no_grad()
    def attention_of(self, embeddings, mask=None, scenario_ids=None) -> torch.Tensor:
        """The weights a_j of the prompts for each example: (batch, candidates), or (batch, candidates, length) where
        each row has its own. That of the target is without the 1 which it has besides.

        embeddings: of the text, model.get_input_embeddings()(input_ids); mask: (batch, source) or None.
        """
        scenario_ids = self.check_scenario_ids(scenario_ids, len(embeddings), embeddings.device)
        return self._mix(embeddings, mask, scenario_ids)[1]

    def _mix(self, embeddings, mask, scenario_ids) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompts in front of the embeddings, and the weights."""
        mask = None if mask is None or self.config.pool_padding else mask.bool()
        # in the parameters' own precision: autocast would round the text, too
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings.to(self.source_prompts.dtype)
            if scenario_ids is None:
                scenario_ids = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            by_kernel = self.config.attention == "sub" and self.config.use_target
            prefixed, weights = (self._fused if by_kernel else self._plain)(x, mask, scenario_ids)
            return prefixed.to(embeddings.dtype), weights

    def _fused(self, x, mask, scenario_ids) -> tuple[torch.Tensor, torch.Tensor]:
        g, targets = self.attention, self.only_trained(self.target_prompts)
        maps = (g.down.weight.T, g.up.weight.T, g.norm.weight, g.norm.bias)
        return mop_kernels.attempt_mix(x, mask, self.source_prompts, targets, scenario_ids, *maps, self.temperature)

    def _plain(self, x, mask, scenario_ids) -> tuple[torch.Tensor, torch.Tensor]:
        sources, targets = self.source_prompts, None
        if self.config.use_target:
            # advanced indexing: on a GPU its backward is a sorted sum, that of index_select adds in no fixed order
            targets = self.only_trained(self.target_prompts)[scenario_ids]
        weights = self._weights(x, mask, targets)
        by_row = weights if weights.dim() == 3 else weights[..., None].expand(-1, -1, sources.shape[1])
        prompt = torch.einsum("btm,tmd->bmd", by_row[:, : len(sources)], sources)
        if targets is not None:
            prompt = prompt + (1 + by_row[:, -1, :, None]) * targets
        return torch.cat([prompt, x], dim=1), weights

    def _weights(self, x, mask, targets) -> torch.Tensor:
        """(batch, candidates), or (batch, candidates, length) of the attention "token"; targets: (batch, length, d)"""
        sources, attention = self.source_prompts, self.config.attention
        if not self.config.has_attention:
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

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {
            "prompts": [] if self.target_prompts is None else [self.target_prompts],
            "attention": [] if self.attention is None else list(self.attention.parameters()),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        if self.distinguishes_scenarios:  # a task that is alone is never absent
            yield self.target_prompts, 0


def _pooled(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, d): the maximum of x over the positions that count; 0 where none does."""
    if mask is None:
        return x.amax(1)
    counts = mask.bool()[..., None]
    return x.masked_fill(~counts, -math.inf).amax(1).masked_fill(~counts.any(1), 0)


def _make_buffers(module: nn.Module) -> None:
    """Make all parameters buffers: the parameters of a method are what it trains."""
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            delattr(owner, name)
            owner.register_buffer(name, parameter.detach())
