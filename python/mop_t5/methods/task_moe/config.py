"""The config of the method "task_moe": fields, preset, checks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mop_t5.attachment.method import MethodConfig
from mop_t5.checks import at_least, check_some_scenario, one_of, within
from mop_t5.methods.task_moe.routers import ROUTERS
from mop_t5.methods.task_moe.selection import SELECTIONS

_MOST_EXPERTS = 1024  # of a block
_PRESETS = {
    # slowly from nearly average routes to the router's routes; for use with `routes_from`
    "stage_two": {
        "selection": "softmax",
        "temperature": 300.0,
        "temperature_rate": 1e-4,
        "minimum_temperature": 1.0,
    }
}


@dataclass(frozen=True)
class TaskMoEConfig(MethodConfig):
    """Fields of the method "task_moe".

    Args:
        scenarios: names of the scenarios, the tasks.
        experts: copies of each chosen block.
        encoder_layers: indices of the blocks of the encoder that become experts; None for all blocks.
        decoder_layers: indices of the blocks of the decoder that become experts; None for all blocks.
        router: the network from the vector of a task to logits (layers, experts): "linear", "rnn", "lstm", "gru" or
            "transformer", each also with "_layer_specific" behind its name.
        hidden: width of the router.
        selection: how logits become routes: "softmax"; "gumbel", with Gumbel noise; "straight_through", the best expert
            after the noise alone, with the gradient of "gumbel".
        temperature: the logits are divided by max(temperature * exp(-temperature_rate * step), minimum_temperature),
            where step counts the optimizer steps.
        temperature_rate: of the exponential decay of the temperature, per optimizer step.
        minimum_temperature: the smallest temperature.
        noise_in_evaluation: draw the noise of "gumbel" and "straight_through" in evaluation, too, as the public code
            does.
        exploration: probability that training sends an example through a random expert of a layer in place of its
            route.
        routes: "learned"; "average", all experts alike; "random_N", N random experts per task and layer, drawn once;
            "instance", a random expert per example and layer, drawn anew in training, and once for evaluation.
        routes_from: folder of a saved task_moe whose router and task vectors make the routes, frozen. Tasks that it
            does not know need a vector of their own in `task_vectors`.
        experts_from: folder of a saved task_moe whose experts are the start. If routes are learned here, its router and
            the vectors of the tasks that it knows are the start, too.
        task_vectors: file of `mop-t5 task-vectors` with a vector for each scenario. None: random ones, N(0, 1).
        d_task: width of the task vectors.
        train_task_vectors: train them, too.
        noise: deviation of the noise on the experts' initial values, which are the values of their block.
        own_tables: give each expert its own table of relative positions, which it shares with the experts of the same
            number in later blocks. False: all share the backbone's table. For T5 and mT5; in umT5 every block has a
            table. Needs experts in all blocks of a stack that has any.
        train_shared: also train the weights that all experts share: embeddings, head, last LayerNorms, blocks without
            experts.
        expert_regulariser: weight of a loss, the sum over layers of the mean distance of two experts. Above 0 it pulls
            experts together.
        alternate: train the router and the task vectors in one step, all else in the next.
        preset: "stage_two", the temperature of the second stage. Fields that you set override the preset (a default
            value does not).
    """

    experts: Annotated[int, at_least(1)] = 3
    encoder_layers: Annotated[tuple[int, ...] | None, at_least(0)] = None
    decoder_layers: Annotated[tuple[int, ...] | None, at_least(0)] = None
    router: Annotated[str, one_of(*ROUTERS)] = "linear_layer_specific"
    hidden: Annotated[int, at_least(1)] = 64
    selection: Annotated[str, one_of(*SELECTIONS)] = "softmax"
    temperature: Annotated[float, within(above=0)] = 2.0
    temperature_rate: Annotated[float, within(0)] = 3e-4
    minimum_temperature: Annotated[float, within(above=0)] = 0.1
    noise_in_evaluation: bool = False
    exploration: Annotated[float, within(0, below=1)] = 0.0
    routes: str = "learned"
    routes_from: str | None = None
    experts_from: str | None = None
    task_vectors: str | None = None
    d_task: Annotated[int, at_least(1)] = 768
    train_task_vectors: bool = True
    noise: Annotated[float, within(0)] = 1e-8
    own_tables: bool = False
    train_shared: bool = True
    expert_regulariser: float = 0.0
    alternate: bool = False
    preset: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_some_scenario(self.scenarios)
        self._fill_in(_PRESETS, self.preset)
        if self.experts > _MOST_EXPERTS:
            raise ValueError(f"experts must be at most {_MOST_EXPERTS}; got {self.experts}.")
        for name in ("encoder_layers", "decoder_layers"):
            if (layers := getattr(self, name)) is not None:
                if len(set(layers)) != len(layers):
                    raise ValueError(f"{name} must be distinct; got {list(layers)}.")
                self._set(name, tuple(sorted(layers)))
        if self.encoder_layers == self.decoder_layers == ():
            raise ValueError("encoder_layers and decoder_layers are both empty. Name a block, or None for all.")
        if self.expert_regulariser and self.experts == 1:
            raise ValueError("expert_regulariser needs two experts or more; got experts=1.")
        self._check_routes()

    def sources(self) -> dict[str, list[Path]]:
        """Return the folders and files that the routes and experts start from, by their field."""
        named = ("routes_from", "experts_from", "task_vectors")
        return {name: [Path(path)] for name in named if (path := getattr(self, name))}

    def _check_routes(self) -> None:
        if self.routes != "learned" and not 1 <= self.drawn_experts <= self.experts:
            raise ValueError(
                f"routes must be 'learned', 'average', 'instance' or 'random_N' with N from 1 to {self.experts}; got "
                f"{self.routes!r}."
            )
        if self.routes != "learned" and self.routes_from is not None:
            raise ValueError(f"routes_from needs routes='learned'; got {self.routes!r}. Leave one of them out.")
        if self.alternate and not self.has_router:
            raise ValueError("alternate needs a trained router. Remove routes and routes_from.")

    @property
    def drawn_experts(self) -> int:
        """Number of experts in a fixed route, which have equal weights. 0 if routes are learned."""
        count = re.fullmatch(r"random_(\d+)", self.routes)
        return int(count[1]) if count else {"average": self.experts, "instance": 1}.get(self.routes, 0)

    @property
    def has_router(self) -> bool:
        """True if routes are learned here. Otherwise they are fixed."""
        return self.routes == "learned" and self.routes_from is None
