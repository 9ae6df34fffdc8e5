"""Task-level mixture of experts with learned routing (Ye et al. 2022): blocks become experts, routed by the task.

h' = sum_e w[layer, task, e] * Block_e(h), over complete copies of a block, and w[layer, task] = softmax(router(task
vector)[layer] / temperature). The router reads the task and neither tokens nor examples.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mop_t5.attachment.additions import Additions
from mop_t5.attachment.experts import new_expert, values_of
from mop_t5.attachment.method import Method
from mop_t5.attachment.mixture import Mixture
from mop_t5.backbone.identity import check_same_backbone, weights_of
from mop_t5.backbone.load import BackboneShape
from mop_t5.methods import register
from mop_t5.methods.task_moe import selection as route_selection
from mop_t5.methods.task_moe.config import TaskMoEConfig
from mop_t5.methods.task_moe.routers import make_router
from mop_t5.storage import adapter_folder
from mop_t5.storage.task_vectors import read as read_vectors

_STACKS = ("encoder", "decoder")


@register
class TaskMoE(Method):
    """The experts of every chosen block, and either a router and the vectors of the tasks, or fixed routes."""

    name = "task_moe"
    Config = TaskMoEConfig

    def __init__(self, config: TaskMoEConfig, shape: BackboneShape, device=None, dtype=None):
        super().__init__(config, shape)
        c, where = config, {"device": device, "dtype": dtype}
        chosen = {"encoder": c.encoder_layers, "decoder": c.decoder_layers}
        depth = {"encoder": shape.num_layers, "decoder": shape.num_decoder_layers}
        for stack, layers in chosen.items():
            wrong = [layer for layer in layers or () if layer >= depth[stack]]
            if wrong:
                raise ValueError(f"{stack}_layers must lie in 0 to {depth[stack] - 1}; got {wrong[0]}.")
            chosen[stack] = range(depth[stack]) if layers is None else layers
            if c.own_tables and 0 < len(chosen[stack]) < depth[stack]:
                raise ValueError(
                    f"own_tables needs experts in all {depth[stack]} blocks of the {stack}, or in none; got "
                    f"{list(chosen[stack])}. Leave {stack}_layers or own_tables out."
                )
        self.expert_places = tuple((stack, layer) for stack in _STACKS for layer in chosen[stack])
        size = (len(self.expert_places), len(c.scenarios), c.experts)
        self.disabled: tuple[tuple[int, int], ...] = ()  # see disable
        self.experts = nn.ModuleList()  # of each place, in their order; made by build
        self.register_buffer("temperature", torch.tensor(float(c.temperature), **where))
        if not c.has_router:
            # logits where they come from a router, else routes
            self.register_buffer("fixed", torch.zeros(size, **where))
            return
        self.router = make_router(c.router, c.d_task, c.hidden, size[0], c.experts, **where)
        vectors = torch.zeros(len(c.scenarios), c.d_task, **where)
        if c.train_task_vectors:
            self.task_vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("task_vectors", vectors)

    def build(self, model, device, dtype) -> None:
        for stack, layer in self.expert_places:
            block = getattr(model, stack).block[layer]
            copies = (
                new_expert(block, stack, own_table=self.config.own_tables, device=device, dtype=dtype)
                for _ in range(self.config.experts)
            )
            self.experts.append(nn.ModuleList(copies))

    @torch.no_grad()
    def initialise(self, model) -> dict[str, torch.Tensor] | None:
        c = self.config
        for (stack, layer), experts in zip(self.expert_places, self.experts, strict=True):
            values = values_of(getattr(model, stack).block[layer])
            for expert in experts:
                for name, parameter in expert.named_parameters():
                    parameter.copy_(values[name])
                    if c.noise:
                        parameter.add_(torch.randn_like(parameter), alpha=c.noise)
        start = None if c.experts_from is None else self._saved(model, "experts_from", c.experts_from)
        if c.has_router:
            known = start is not None and start[0].has_router
            self.task_vectors.copy_(self._vectors_of(*start) if known else self._first_vectors())
        elif c.routes_from is not None:
            self.fixed.copy_(self._routes_of(model, c.routes_from))
        else:
            seed = int(torch.randint(2**31, ()))
            kind, tasks = ("random_1", 1) if c.routes == "instance" else (c.routes, len(c.scenarios))
            routes = route_selection.fixed_routes(kind, len(self.experts), tasks, c.experts, seed).to(self.fixed)
            self.fixed.copy_(routes / routes.sum(-1, keepdim=True))  # a third is another number in float64
        return None if start is None else self._start_from(*start)

    def _first_vectors(self) -> torch.Tensor:
        c = self.config
        if c.task_vectors is None:
            return torch.randn(len(c.scenarios), c.d_task)
        vectors = read_vectors(c.task_vectors, c.scenarios)
        if vectors.shape[1] != c.d_task:
            raise ValueError(f"d_task must be the width of {c.task_vectors!r}, {vectors.shape[1]}; got {c.d_task}.")
        return vectors

    def _saved(self, model, argument: str, folder: str) -> tuple[TaskMoEConfig, dict[str, torch.Tensor]]:
        """The config of a saved task_moe that fits model and this config, and its tensors."""
        description, tensors = adapter_folder.read(folder)
        if description["method"] != self.name:
            holds = description["method"]
            raise ValueError(f"{argument} {folder!r} holds the method {holds!r}; expected {self.name!r}.")
        check_same_backbone(model, description["backbone"], weights_of(model), folder)
        config = TaskMoEConfig.make(description["config"])
        fields = ["experts", "encoder_layers", "decoder_layers"]
        if argument == "experts_from":
            both_route = config.has_router and self.config.has_router
            fields += ["own_tables", *(("router", "hidden", "d_task") if both_route else ())]
        for field in fields:
            there, here = getattr(config, field), getattr(self.config, field)
            if there != here:
                raise ValueError(f"{field} must be that of {argument} {folder!r}, {there!r}; got {here!r}.")
        return config, tensors

    def _routes_of(self, model, folder: str) -> torch.Tensor:
        """(layers, tasks, experts): the logits of a saved router for the tasks of this one."""
        config, tensors = self._saved(model, "routes_from", folder)
        if config.routes != "learned":
            raise ValueError(f"routes_from {folder!r} has routes={config.routes!r}; expected learned ones.")
        if not config.has_router:
            unknown = sorted(set(self.scenarios) - set(config.scenarios))
            if unknown:
                raise ValueError(
                    f"routes_from {folder!r} has no router, because its own routes are from {config.routes_from!r}, "
                    f"and no route for {', '.join(unknown)}. Name that folder instead."
                )
            return tensors["mop.fixed"][:, [config.scenarios.index(name) for name in self.scenarios]]
        router = make_router(config.router, config.d_task, config.hidden, len(self.experts), config.experts)
        router = router.to(tensors["mop.task_vectors"].dtype).eval()
        router.load_state_dict(_below("mop.router.", tensors))
        return router(self._vectors_of(config, tensors))

    def _vectors_of(self, config: TaskMoEConfig, tensors) -> torch.Tensor:
        """(tasks, d_task): those of a saved task_moe where it knows the task, else those of `task_vectors`."""
        vectors = tensors["mop.task_vectors"]
        saved = dict(zip(config.scenarios, vectors, strict=True))
        new = [name for name in self.scenarios if name not in saved]
        if new:
            if self.config.task_vectors is None:
                raise ValueError(f"task_vectors must name a file, because none is saved for {', '.join(new)}.")
            read = read_vectors(self.config.task_vectors, new)
            if read.shape[1] != config.d_task:
                raise ValueError(f"task_vectors must have width {config.d_task}, as the saved; got {read.shape[1]}.")
            saved |= dict(zip(new, read.to(vectors.dtype), strict=True))
        return torch.stack([saved[name] for name in self.scenarios])

    def _start_from(self, config: TaskMoEConfig, tensors) -> dict[str, torch.Tensor]:
        """Take over the experts of another one, and its router. Returns its values of shared parameters."""
        self.experts.load_state_dict(_below("mop.experts.", tensors))
        if self.config.has_router and config.has_router:
            self.router.load_state_dict(_below("mop.router.", tensors))
        shared = {name: tensor for name, tensor in tensors.items() if not name.startswith("mop.")}
        return {name: tensor for name, tensor in shared.items() if self.trains_backbone(name)}

    @property
    def distinguishes_scenarios(self) -> bool:
        return self.config.routes != "average"

    @property
    def skips_parameters(self) -> bool:
        return not self.config.has_router or bool(self.disabled)

    def disable(self, experts: Sequence[tuple[int, int]]) -> None:
        """Take out these experts, (layer, expert), and share their weight among the others as the logits say. Layers
        count the blocks with experts, the encoder's first. Not saved; an empty list brings all back."""
        if experts and self.config.routes != "learned":
            raise ValueError(f"experts can be disabled where routes are learned; here they are {self.config.routes!r}.")
        pairs = tuple((int(layer), int(expert)) for layer, expert in experts)
        route_selection.expert_mask(pairs, len(self.experts), self.config.experts)  # raises what is wrong with them
        self.disabled = pairs

    def logits(self) -> torch.Tensor | None:
        """(layers, tasks, experts), without the experts that are disabled; None where routes are not learned."""
        if self.config.routes != "learned":
            return None
        if self.config.has_router:
            vectors = self.only_trained(self.task_vectors)
            with torch.autocast(vectors.device.type, enabled=False):  # a low temperature magnifies what is rounded
                logits = self.router(vectors)
        else:
            logits = self.fixed
        return logits if not self.disabled else route_selection.masked(logits, self._mask(logits.device))

    def _mask(self, device) -> torch.Tensor | None:
        if not self.disabled:
            return None
        return route_selection.expert_mask(self.disabled, len(self.experts), self.config.experts, device)

    @torch.no_grad()
    def route_weights(self, temperature: float | None = None) -> torch.Tensor:
        """(layers, tasks, experts): the weights of evaluation, without noise; at another temperature than the present
        one if given."""
        if self.config.routes != "learned":
            return self.fixed.clone()
        training = self.training
        logits = self.eval().logits()  # a router may have dropout
        self.train(training)
        temperature = self.temperature if temperature is None else temperature
        return route_selection.select(logits, self.config.selection, temperature, deterministic=True)

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        weights, by_scenario = self._weights(scenario_ids)
        # zeros of which no gradient is wanted; a softmax alone has none
        some_zero = self.config.routes not in ("learned", "average") or bool(self.disabled)
        some_zero = some_zero or self.config.selection == "straight_through" or self._explores
        sparse = some_zero and not weights.requires_grad and not weights.is_meta
        blocks = dict(zip(self.expert_places, self.experts, strict=True))
        loss = None
        if self.training and self.config.expert_regulariser:
            loss = self.config.expert_regulariser * sum(expert_distance(experts) for experts in self.experts)
        return Additions(experts=Mixture(blocks, weights, by_scenario=by_scenario, sparse=sparse), loss=loss)

    @property
    def _explores(self) -> bool:
        return self.training and self.config.exploration > 0

    def _weights(self, scenario_ids) -> tuple[torch.Tensor, bool]:
        """Weights (layers, rows, experts), and whether a row is a scenario or else an example."""
        c, logits = self.config, self.logits()
        noisy = logits is not None and c.selection != "softmax" and (self.training or c.noise_in_evaluation)
        drawn = logits is None and c.routes == "instance" and self.training
        # what is random is drawn for every example
        by_example = scenario_ids is not None and (noisy or drawn or self._explores)
        start = self.fixed if logits is None else logits
        start = start[:, scenario_ids] if by_example else start
        if logits is not None:
            weights = route_selection.select(start, c.selection, self.temperature, deterministic=not noisy)
        else:
            weights = route_selection.random_experts(start) if drawn and by_example else start
        if self._explores and by_example:
            weights = route_selection.explore(weights, c.exploration, mask=self._mask(weights.device))
        return weights, not by_example

    def trains_backbone(self, parameter_name: str) -> bool:
        stack, inside, rest = parameter_name.partition(".block.")
        if not self.config.train_shared or not inside or (stack, int(rest.split(".")[0])) not in self.expert_places:
            return self.config.train_shared
        # of a block whose experts stand in its place, what they share
        is_table = rest.endswith("relative_attention_bias.weight") and self.shape.model_type != "umt5"
        return is_table and not self.config.own_tables

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"experts": list(self.experts.parameters())}
        if self.config.has_router:
            groups["router"] = list(self.router.parameters())
            if self.config.train_task_vectors:
                groups["task_vectors"] = [self.task_vectors]
        return groups

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        if self.config.has_router and self.config.train_task_vectors and len(self.scenarios) > 1:
            yield self.task_vectors, 0

    def idle_groups(self, step: int) -> tuple[str, ...]:
        if not self.config.alternate:
            return ()
        return ("experts", "backbone") if step % 2 == 0 else ("router", "task_vectors")

    def after_step(self, step: int) -> None:
        c = self.config
        now = route_selection.temperature_at(step, c.temperature, c.temperature_rate, c.minimum_temperature)
        self.temperature.fill_(now)

    def records(self) -> dict[str, dict]:
        weights = self.route_weights()
        record = {"temperature": float(self.temperature), **_described("", weights)}
        if self.config.routes == "learned":
            record |= _described("_at_1", self.route_weights(1.0))
        return {"routes.jsonl": {"scenarios": list(self.scenarios), **record}}


def _described(suffix: str, weights: torch.Tensor) -> dict:
    """For the log: the weights (layers, tasks, experts) as nested lists, and the mean entropy of a route in nats."""
    rounded = (weights.double() * 1e6).round() / 1e6
    return {f"entropy{suffix}": float(route_selection.entropy(weights).mean()), f"routes{suffix}": rounded.tolist()}


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def expert_distance(experts: Sequence[nn.Module]) -> torch.Tensor:
    """Mean over pairs of experts of the sum over parameters of |p - p'|, the Euclidean norm."""
    pairs = list(itertools.combinations(experts, 2))
    return sum(
        torch.linalg.vector_norm(p - q)
        for one, other in pairs
        for p, q in zip(one.parameters(), other.parameters(), strict=True)
    ) / len(pairs)
