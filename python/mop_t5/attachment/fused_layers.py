"""Layers of an attached T5 in training: fused dropout, norms and feed-forward networks (mop_kernels.step), embeddings.

While a method is attached, the classes of these modules are subclasses of their own classes. In training mode, with
gradients, they call the operations of mop_kernels.step, which save far less for backward. In evaluation mode, and
where no kernel runs (mop_kernels.use_backend("reference"), a device without kernels), the forward of the plain class
runs, so that evaluation and generation do not change. No module is replaced, and detach gives the classes back.

mop_kernels is imported in training only: a saved prefix is served without it.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.mixin import RuntimeMixin, combined

if TYPE_CHECKING:  # the layers of MT5 and UMT5 have the same attributes
    from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense, T5LayerFF, T5LayerNorm
else:
    T5DenseActDense = T5DenseGatedActDense = T5LayerFF = T5LayerNorm = nn.Module

_GELU_TANH = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh")  # one function in transformers, which renames classes


def runs_fused(module: nn.Module, op: str, hidden: Tensor) -> bool:
    """Tell whether a module takes a kernel: in training, with gradients, on a plain tensor that the kernel serves."""
    if not module.training or not torch.is_grad_enabled() or type(hidden) is not Tensor:
        return False
    from mop_kernels.backends import has_kernel

    return has_kernel(op, hidden)


def is_bare(module: nn.Module) -> bool:
    """Tell whether nobody hooks a module or replaces its forward, so that it need not be called."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return not (hooked or "forward" in module.__dict__)


class FusedDropout(RuntimeMixin, nn.Dropout):
    """Mixed into the class of a dropout."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the dropout of `input`."""
        if self.inplace or not 0 < self.p < 1 or not runs_fused(self, "dropout_add", input):
            return super().forward(input)
        from mop_kernels import dropout_add

        return dropout_add(input, None, self.p)


class FusedLayerNorm(RuntimeMixin, T5LayerNorm):
    """Mixed into the class of a T5 LayerNorm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the norm of the hidden states.

        The plain class serves float64, whose mean it computes in float32, and weights of another dtype.
        """
        same = self.weight.dtype == hidden_states.dtype != torch.float64
        if not same or type(self.weight) is not nn.Parameter or not runs_fused(self, "rms_norm", hidden_states):
            return super().forward(hidden_states)
        from mop_kernels import rms_norm

        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class FusedNetwork(RuntimeMixin, T5DenseActDense):
    """Mixed into the class of a feed-forward network with ReLU. One bit per hidden element is saved for backward."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return wo(dropout(relu(wi(hidden_states))))."""
        bare = isinstance(self.act, nn.ReLU) and is_bare(self.act) and is_bare(self.dropout)
        if not bare or not runs_fused(self, "relu_dropout", hidden_states) or not self.dropout.p < 1:
            return super().forward(hidden_states)
        from mop_kernels import relu_dropout

        hidden = relu_dropout(self.wi(hidden_states), self.dropout.p if self.dropout.training else 0.0)
        return _last_map(self, hidden)


class FusedGatedNetwork(RuntimeMixin, T5DenseGatedActDense):
    """Mixed into the class of a gated feed-forward network with GELU by tanh (T5 1.1, flan-T5, mT5).

    Nothing but the outputs of wi_0 and wi_1 is saved for backward.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return wo(dropout(act(wi_0(hidden_states)) * wi_1(hidden_states)))."""
        bare = _is_gelu_tanh(self.act) and is_bare(self.act) and is_bare(self.dropout)
        if not bare or not runs_fused(self, "gated_gelu_dropout", hidden_states) or not self.dropout.p < 1:
            return super().forward(hidden_states)
        from mop_kernels import gated_gelu_dropout

        gate, x = self.wi_0(hidden_states), self.wi_1(hidden_states)
        if gate.dtype != x.dtype:  # a map that was replaced or is hooked may return another dtype
            return _last_map(self, self.dropout(self.act(gate) * x))
        return _last_map(self, gated_gelu_dropout(gate, x, self.dropout.p if self.dropout.training else 0.0))


class FusedFeedForward(RuntimeMixin, T5LayerFF):
    """Mixed into the class of a feed-forward sub-layer."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return hidden_states + dropout(network(norm(hidden_states)))."""
        fused = is_bare(self.dropout) and self.dropout.training and 0 < self.dropout.p < 1
        if not fused or not runs_fused(self, "dropout_add", hidden_states):
            return super().forward(hidden_states)
        from mop_kernels import dropout_add

        changed = self.DenseReluDense(self.layer_norm(hidden_states))
        return dropout_add(changed, hidden_states, self.dropout.p)


class ExactEmbedding(RuntimeMixin, nn.Embedding):
    """Mixed into the class of an embedding, for gradients of tables in 16 bits on a CPU.

    torch adds them in 16 bits there: a bfloat16 sum of ones stops at 256
    (findings/torch_half_embedding_gradients_stop.sh). The gradients of index_select are added in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the table."""
        options = (self.padding_idx, self.max_norm, self.scale_grad_by_freq, self.sparse)
        trained = type(self.weight) is nn.Parameter and self.weight.requires_grad and self.weight.is_cpu
        if not trained or self.weight.dtype.itemsize != 2 or options != (None, None, False, False):
            return super().forward(input)
        return self.weight.index_select(0, input.flatten()).reshape(*input.shape, self.embedding_dim)


def _is_gelu_tanh(act: nn.Module) -> bool:
    """Tell whether an activation is the GELU by tanh, which transformers names gelu_new and gelu_pytorch_tanh."""
    if isinstance(act, nn.GELU):
        return act.approximate == "tanh"
    return type(act).__name__ in _GELU_TANH and type(act).__module__ == "transformers.activations"


def _last_map(network: T5DenseActDense | T5DenseGatedActDense, hidden: Tensor) -> Tensor:
    """Return wo(hidden), in the dtype of wo: transformers keeps wo in float32 in networks of 16 bits."""
    dtype = network.wo.weight.dtype
    return network.wo(hidden.to(dtype) if hidden.dtype != dtype and dtype.is_floating_point else hidden)


# by the name of the plain class
_MIXINS: dict[str, type[RuntimeMixin]] = {"Dropout": FusedDropout, "Embedding": ExactEmbedding}
for _family in ("T5", "MT5", "UMT5"):
    _MIXINS[f"{_family}LayerNorm"] = FusedLayerNorm
    _MIXINS[f"{_family}DenseActDense"] = FusedNetwork
    _MIXINS[f"{_family}DenseGatedActDense"] = FusedGatedNetwork
    _MIXINS[f"{_family}LayerFF"] = FusedFeedForward


def fuse_layers(model: T5) -> None:
    """Give the layers of an attached model, and of its method, their fused classes."""
    for module in model.modules():
        plain = type(module)
        known = plain in (nn.Dropout, nn.Embedding) or plain.__module__.startswith("transformers.models.")
        if known and plain.__name__ in _MIXINS and "forward" not in module.__dict__:
            module.__class__ = combined(_MIXINS[plain.__name__], plain)
