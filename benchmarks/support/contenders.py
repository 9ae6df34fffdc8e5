"""Contenders: the ways to compute an operation. A form is the code that a PyTorch user would write."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mop_kernels as mk
from benchmarks.support import pytorch_forms
from benchmarks.support.work import BANK, FULL_DOWN, LAYER, ONE_TERM, Work, public_arguments
from mop_kernels import reference, truth

Function = Callable[..., Any]


class Contender(NamedTuple):
    """One way to compute an operation.

    Attributes:
        name: Its name in the tables.
        function: A function of the inputs. Of a stand-in: it makes a function and its own tensors from the inputs.
        kind: "ours", a compiled backend; "reference", the backend of that name; "form", other code that computes the
            same; or "stand-in", whose gradients belong to other tensors (a dense weight, the parameters of a module).
            Only the outputs of a stand-in are judged.
        compiled: True: torch.compile compiles the function.
    """

    name: str
    function: Function
    kind: str = "form"
    compiled: bool = False


CPU_BACKENDS = tuple(name for name in reversed(mk.available_backends()) if name != "triton")
GPU_BACKENDS = ("triton", "cuda")
ARRAY = "terms*d*m array (Compacter's way)"
AUTHORS_WAY = "pair by pair, terms*d*m array (the authors' way)"
EINSUM_LOOP = "pair by pair, one einsum a map"
STAGES, PRODUCT = "three stages", "W as one product"
BATCHED = "batched, "
BATCHED_STAGES, BATCHED_PRODUCT = (BATCHED + STAGES, BATCHED + PRODUCT)
DENSE = "dense F.linear"
LYCORIS = "LyCORIS kron_bypass, Triton"
COMPILE = "torch.compile, "
COMPILED = COMPILED_STAGES, COMPILED_PRODUCT = (COMPILE + STAGES, COMPILE + PRODUCT)
FORMS: dict[str, dict[str, Function]] = {
    "phm_weight": {
        ARRAY: pytorch_forms.summed_array,
        "sum of torch.kron": truth.kron_weight,
        "one matrix product": pytorch_forms.one_product,
    },
    "phm_linear": {
        ARRAY: pytorch_forms.through(pytorch_forms.summed_array),
        PRODUCT: pytorch_forms.through(pytorch_forms.one_product),
        "local first": pytorch_forms.local_first,
        "rule first": pytorch_forms.rule_first,
        LYCORIS: pytorch_forms.lycoris_bypass(backend="triton"),
    },
    "lowrank_phm_linear": {
        ARRAY: pytorch_forms.through(pytorch_forms.summed_array),
        PRODUCT: pytorch_forms.through(pytorch_forms.one_product),
        STAGES: pytorch_forms.three_stages,
    },
    "mop_ffn": {
        AUTHORS_WAY: pytorch_forms.pair_by_pair(pytorch_forms.through(pytorch_forms.summed_array)),
        EINSUM_LOOP: pytorch_forms.pair_by_pair(pytorch_forms.one_einsum),
        "pair by pair, W by einsum": pytorch_forms.pair_by_pair(pytorch_forms.through(reference.phm_weight)),
        BATCHED_PRODUCT: pytorch_forms.bank_weights,
        BATCHED_STAGES: pytorch_forms.bank_stages,
    },
    "attempt_mix": {"PyTorch operations": pytorch_forms.attempt_mix},
}
GRAPH, EAGER, EACH = ("graph",), ("eager",), ("graph", "eager")
# the forms that bench_device.py compares each work with, and the ways of timer.WAYS in which it times them
FORMS_ON_GPU: dict[Work, dict[str, tuple[str, ...]]] = {
    BANK: {BATCHED_STAGES: EACH, BATCHED_PRODUCT: GRAPH, **dict.fromkeys(COMPILED, GRAPH), EINSUM_LOOP: EAGER},
    LAYER: {STAGES: GRAPH, COMPILED_STAGES: GRAPH, DENSE: EACH},
    FULL_DOWN: dict.fromkeys((PRODUCT, "local first", COMPILED_PRODUCT, DENSE), GRAPH),
    ONE_TERM: {LYCORIS: GRAPH},
}


def ours(op: str, backends: tuple[str, ...] = CPU_BACKENDS) -> list[Contender]:
    """Return one contender per backend that has the operation."""

    def by(backend: str) -> Function:
        return lambda *tensors: getattr(mk, op)(*public_arguments(op, tensors), backend=backend)

    return [
        Contender(f"mop_kernels {name}", by(name), "reference" if name == "reference" else "ours")
        for name in backends
        if (op, name) != ("attempt_mix", "cuda")
    ]


def forms(op: str, *names: str) -> list[Contender]:
    """Return forms of an operation by name.

    The name "torch.compile, X" is the form X, compiled. For mop_ffn it is the form "batched, X". "dense F.linear" is a
    dense layer of the same sides.
    """

    def form(name: str) -> Contender:
        if name == DENSE:
            return Contender(name, pytorch_forms.dense, kind="stand-in")
        batched = BATCHED if op == "mop_ffn" and name in COMPILED else ""
        eager = batched + name.removeprefix(COMPILE)
        return Contender(name, FORMS[op][eager], compiled=name.startswith(COMPILE))

    return list(map(form, names))
