"""Task-level mixture of experts with learned routing (Ye et al. 2022): blocks become experts, routed by the task.

h' = sum_e w[layer, task, e] * Block_e(h), over complete copies of a block, and w[layer, task] = softmax(router(task
vector)[layer] / temperature). The router reads the task and neither tokens nor examples.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import STACKS, Additions
from mop_t5.attachment.encoder import evaluating
from mop_t5.attachment.experts import new_expert, values_of
from mop_t5.attachment.method import Method, Where
from mop_t5.attachment.mixture import Mixture
from mop_t5.backbone.load import BackboneShape
from mop_t5.methods import register
from mop_t5.methods.parts.modules import ModuleListOf
from mop_t5.methods.parts.precision import full_precision
from mop_t5.methods.parts.saved import below, read_saved
from mop_t5.methods.task_moe import selection
from mop_t5.methods.task_moe.config import TaskMoEConfig
from mop_t5.methods.task_moe.routers import make_router
from mop_t5.storage.task_vectors import read as read_vectors


@register
class TaskMoE(Method[TaskMoEConfig]):
    """The experts of every chosen block, and either a router and the vectors of the tasks, or fixed routes."""

    name = "task_moe"
    Config = TaskMoEConfig
    groups: ClassVar = {"experts": ("experts",), "router": ("router",), "task_vectors": ("task_vectors",)}

    temperature: Tensor
    fixed: Tensor  # logits of a router that is not trained here, or else routes
    task_vectors: Tensor

    def __init__(self, config: TaskMoEConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        c = config
        self.distinguishes_scenarios = c.routes != "average"
        places = []
        for stack, layers in zip(STACKS, (c.encoder_layers, c.decoder_layers), strict=True):
            count = shape.layers(stack)
            chosen = range(count) if layers is None else layers
            if chosen and chosen[-1] >= count:
                raise ValueError(f"{stack}_layers must lie in 0 to {count - 1}; got {chosen[-1]}.")
            if c.own_tables and 0 < len(chosen) < count:
                raise ValueError(
                    f"own_tables needs experts in all {count} blocks of the {stack}, or in none; got {list(chosen)}. "
                    f"Leave {stack}_layers or own_tables out."
                )
            places += [(stack, layer) for layer in chosen]
        self.expert_places = tuple(places)
        size = (len(self.expert_places), len(c.scenarios), c.experts)
        self.disabled: tuple[tuple[int, int], ...] = ()  # see disable
        self.skips_parameters = not c.has_router
        # the experts of each of expert_places, in their order; made by build
        self.experts: ModuleListOf[ModuleListOf[nn.Module]] = ModuleListOf()
        self.register_buffer("temperature", torch.tensor(float(c.temperature), **where))
        if not c.has_router:
            self.register_buffer("fixed", torch.zeros(size, **where))
            return
        self.router = make_router(c.router, c.d_task, c.hidden, size[0], c.experts, **where)
        vectors = torch.zeros(len(c.scenarios), c.d_task, **where)
        if c.train_task_vectors:
            self.task_vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("task_vectors", vectors)

    def build(self, model: T5, **where: Unpack[Where]) -> None:
        """Make the experts."""
        for stack, layer in self.expert_places:
            block, own_table = getattr(model, stack).block[layer], self.config.own_tables
            copies = (new_expert(block, stack, own_table, **where) for _ in range(self.config.experts))
            self.experts.append(ModuleListOf(copies))

    @torch.no_grad()
    def initialise(self, model: T5) -> dict[str, Tensor] | None:
        """Set the experts, the routes and the task vectors. Return the shared parameters of `experts_from`."""
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
            vectors = self._vectors_of(*start) if start is not None and start[0].has_router else self._first_vectors()
            self.task_vectors.copy_(vectors)
        elif c.routes_from is not None:
            self.fixed.copy_(self._routes_of(model, c.routes_from))
        else:
            seed = int(torch.randint(2**31, ()).item())
            tasks = 1 if c.routes == "instance" else len(c.scenarios)
            routes = selection.fixed_routes(c.drawn_experts, len(self.experts), tasks, c.experts, seed).to(self.fixed)
            self.fixed.copy_(routes / routes.sum(-1, keepdim=True))  # 1/3 is another number in float64
        return None if start is None else self._start_from(*start)

    def _first_vectors(self) -> Tensor:
        c = self.config
        if c.task_vectors is None:
            return torch.randn(len(c.scenarios), c.d_task)
        vectors = read_vectors(c.task_vectors, c.scenarios)
        if vectors.shape[1] != c.d_task:
            raise ValueError(f"d_task must be the width of {c.task_vectors!r}, {vectors.shape[1]}; got {c.d_task}.")
        return vectors

    def _saved(self, model: T5, argument: str, folder: str) -> tuple[TaskMoEConfig, dict[str, Tensor]]:
        """Return the config of a saved task_moe that fits model and this config, and its tensors."""
        description, tensors = read_saved(model, self.name, argument, folder)
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

    def _routes_of(self, model: T5, folder: str) -> Tensor:
        """Return the logits of a saved router for the tasks of this method: (layers, tasks, experts)."""
        config, tensors = self._saved(model, "routes_from", folder)
        if config.routes != "learned":
            raise ValueError(f"routes_from {folder!r} has routes={config.routes!r}; expected learned ones.")
        if not config.has_router:
            if unknown := sorted(set(self.scenarios) - set(config.scenarios)):
                raise ValueError(
                    f"routes_from {folder!r} has no router, because its own routes are from {config.routes_from!r}, "
                    f"and no route for {', '.join(unknown)}. Name that folder instead."
                )
            return tensors["mop.fixed"][:, [config.scenarios.index(name) for name in self.scenarios]]
        router = make_router(config.router, config.d_task, config.hidden, len(self.experts), config.experts)
        router = router.to(tensors["mop.task_vectors"].dtype).eval()
        router.load_state_dict(below("mop.router.", tensors))
        return router(self._vectors_of(config, tensors))

    def _vectors_of(self, config: TaskMoEConfig, tensors: dict[str, Tensor]) -> Tensor:
        """Return the vectors (tasks, d_task) of a saved task_moe. Those of new tasks come from `task_vectors`."""
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

    def _start_from(self, config: TaskMoEConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take over the experts and the router of a saved task_moe. Return its values of shared parameters."""
        self.experts.load_state_dict(below("mop.experts.", tensors))
        if self.config.has_router and config.has_router:
            self.router.load_state_dict(below("mop.router.", tensors))
        shared = {name: tensor for name, tensor in tensors.items() if not name.startswith("mop.")}
        return {name: tensor for name, tensor in shared.items() if self.trains_backbone(name)}

    def disable(self, experts: Sequence[tuple[int, int]]) -> None:
        """Take experts out, and share their weight among the others according to the logits.

        Args:
            experts: Pairs (layer, expert). Layers count the blocks with experts, the encoder's first. An empty list
                brings all experts back. Not saved.

        Raises:
            ValueError: Routes are not learned, a pair does not exist, or a layer would have no expert left.
        """
        if experts and self.config.routes != "learned":
            raise ValueError(f"experts can be disabled where routes are learned; here they are {self.config.routes!r}.")
        pairs = tuple((int(layer), int(expert)) for layer, expert in experts)
        selection.expert_mask(pairs, len(self.experts), self.config.experts)  # raises for wrong pairs
        self.disabled = pairs
        self.skips_parameters = not self.config.has_router or bool(pairs)

    def logits(self) -> Tensor | None:
        """Return (layers, tasks, experts), without the disabled experts. None where routes are not learned."""
        if self.config.routes != "learned":
            return None
        if self.config.has_router:
            vectors = self.only_trained(self.task_vectors)
            with full_precision(vectors):  # a low temperature magnifies rounding errors
                logits = self.router(vectors)
        else:
            logits = self.fixed
        mask = self._mask(logits.device)
        return logits if mask is None else selection.masked(logits, mask)

    def _mask(self, device: torch.device) -> Tensor | None:
        if not self.disabled:
            return None
        return selection.expert_mask(self.disabled, len(self.experts), self.config.experts, device)

    def route_weights(self, temperature: float | None = None) -> Tensor:
        """Return the weights of evaluation, without noise: (layers, tasks, experts).

        Args:
            temperature: Temperature to use. None: the present temperature.
        """
        with evaluating(self):  # a router may have dropout
            logits = self.logits()
            if logits is None:
                return self.fixed.clone()
            now = self.temperature if temperature is None else temperature
            return selection.select(logits, self.config.selection, now, deterministic=True)

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the experts and their weights, and in training the loss of expert_regulariser."""
        weights, by_scenario = self._weights(scenario_ids)
        # True if some weights are exactly zero and need no gradient; a plain softmax has no zeros
        some_zero = self.config.routes not in ("learned", "average") or bool(self.disabled)
        some_zero = some_zero or self.config.selection == "straight_through" or self._explores
        sparse = some_zero and not weights.requires_grad and not weights.is_meta
        blocks = dict(zip(self.expert_places, self.experts, strict=True))
        loss = None
        if self.training and self.config.expert_regulariser:
            distances = [selection.expert_distance(experts) for experts in self.experts]
            loss = self.config.expert_regulariser * sum(distances[1:], distances[0])
        return Additions(experts=Mixture(blocks, weights, by_scenario=by_scenario, sparse=sparse), loss=loss)

    @property
    def _explores(self) -> bool:
        return self.training and self.config.exploration > 0

    def _weights(self, scenario_ids: Tensor | None) -> tuple[Tensor, bool]:
        """Return weights (layers, rows, experts), and whether a row is a scenario. Otherwise a row is an example."""
        c, logits = self.config, self.logits()
        noisy = logits is not None and c.selection != "softmax" and (self.training or c.noise_in_evaluation)
        drawn = logits is None and c.routes == "instance" and self.training
        # random choices are drawn per example
        by_example = scenario_ids is not None and (noisy or drawn or self._explores)
        start = self.fixed if logits is None else logits
        if by_example:
            start = start[:, scenario_ids]
        if logits is not None:
            weights = selection.select(start, c.selection, self.temperature, deterministic=not noisy)
        else:
            weights = selection.random_experts(start) if drawn and by_example else start
        if self._explores and by_example:
            weights = selection.explore(weights, c.exploration, mask=self._mask(weights.device))
        return weights, not by_example

    def trains_backbone(self, parameter_name: str) -> bool:
        """Return whether all experts share this parameter, and train_shared trains it."""
        stack, inside, rest = parameter_name.partition(".block.")
        if not self.config.train_shared or not inside or (stack, int(rest.split(".")[0])) not in self.expert_places:
            return self.config.train_shared
        # in a block with experts: the table of relative positions, if the experts share it
        is_table = rest.endswith("relative_attention_bias.weight") and self.shape.model_type != "umt5"
        return is_table and not self.config.own_tables

    def idle_groups(self, step: int) -> tuple[str, ...]:
        """Return the groups that an alternating step leaves alone."""
        if not self.config.alternate:
            return ()
        return ("experts", "backbone") if step % 2 == 0 else ("router", "task_vectors")

    def after_step(self, step: int) -> None:
        """Set the temperature."""
        c = self.config
        now = selection.temperature_at(step, c.temperature, c.temperature_rate, c.minimum_temperature)
        self.temperature.fill_(now)

    def records(self) -> dict[str, dict[str, Any]]:
        """Return temperature, routes and their entropy for routes.jsonl."""
        weights = self.route_weights()
        record = {"temperature": float(self.temperature), **selection.described("", weights)}
        if self.config.routes == "learned":
            record |= selection.described("_at_1", self.route_weights(1.0))
        return {"routes.jsonl": {"scenarios": list(self.scenarios), **record}}
