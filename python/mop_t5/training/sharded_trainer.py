"""A trainer of sharded models. Its checkpoints are those of a model that is not sharded."""

from typing import Any

import torch
from torch import Tensor, nn

from mop_t5.training import sharding
from mop_t5.training.checkpoints import WholeCheckpoints
from mop_t5.training.zero import adapt_engine


class ShardedTrainer(WholeCheckpoints):
    """A trainer whose model may have been sharded by `shard`. It trains any other model as its base does.

    accelerate has a plugin for FSDP2, which cannot be used here: on CPUs it is ignored, and it gives the embeddings of
    a T5 a group beside the groups of their other owners, which torch refuses.
    """

    model: Any  # a PreTrainedModel

    def create_accelerator_and_postprocess(self) -> None:
        """Make an accelerator that does not wrap a sharded model anew."""
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            self._adapt_engines()
        if not sharding.is_sharded(self.model):
            return
        prepare = self.accelerator.prepare_model

        def prepared(model: Any, device_placement: bool | None = None, evaluation_mode: bool = False) -> nn.Module:
            model = prepare(model, device_placement=False, evaluation_mode=True)  # bf16, and no wrapper
            find_unused = bool(self.args.ddp_find_unused_parameters)
            return model if evaluation_mode else sharding.data_parallel(model, find_unused)

        self.accelerator.prepare_model = prepared

    def _adapt_engines(self) -> None:
        prepare = self.accelerator.prepare

        def prepared(*objects: Any, **kwargs: Any) -> Any:
            made = prepare(*objects, **kwargs)
            for one in made if isinstance(made, tuple) else ():
                if isinstance(one, nn.Module):
                    adapt_engine(one, self.model)
            return made

        self.accelerator.prepare = prepared

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not sharding.is_sharded(model):
            super()._move_model_to_device(model, device)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model. Every process must call this method."""
        if not sharding.must_be_gathered(self.model):
            super().save_model(output_dir, _internal_call)
            return
        weights = sharding.gathered_weights(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return an optimizer that also loads the state of a model that is not sharded."""
        optimizer = super().create_optimizer(model)
        if sharding.trains_shards(self.model):
            optimizer.register_load_state_dict_pre_hook(_distributed)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not sharding.trains_shards(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        whole = optimizer.state_dict()
        whole["state"] = {number: sharding.gathered(state) for number, state in whole["state"].items()}
        with optimizer.register_state_dict_post_hook(lambda optimizer, state: whole):  # removed at the end of the block
            super()._save_optimizer_and_scheduler(output_dir)


def _distributed(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state of the optimizer with the shards of this process in place of whole tensors."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def of(own: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        return {name: sharding.like(v, own) if torch.is_tensor(v) and v.dim() else v for name, v in state.items()}

    return saved | {"state": {number: of(parameters[number], state) for number, state in saved["state"].items()}}
