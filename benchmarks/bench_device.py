"""On a GPU: the paper's bank, single layers and the host's cost of a call, beside what else a user would run there.

Device times are of calls replayed from a CUDA graph; `eager` marks calls issued one by one. docs/performance_gpu.md
says what is expected. The bank by our backends comes first, bfloat16 before float32; compiled forms, which take a while
each, come last. Without a GPU nothing is timed; under TRITON_INTERPRET=1 small cases show that all of it works.
"""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import mop_kernels as mk
from benchmarks.device_tables import group_of
from benchmarks.support import bank_forms, layer_forms
from benchmarks.support import timer as device_timer
from benchmarks.support.cases import Case, Contender, mop_arguments, ours
from benchmarks.support.work import BANK, BOTH, FORWARD, FULL, LAYER, PRECISIONS, Work
from mop_kernels import backends, reference, testing
from mop_kernels.testing import Shape

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not backends.interpreting(), reason="needs a CUDA GPU, or TRITON_INTERPRET=1"
)

GPU_BACKENDS = ("triton", "cuda")
GRAPH, EAGER = "graph", "eager"
_, by_one_product = layer_forms.linear_by(layer_forms.one_product)
full_by_one_product, _ = layer_forms.linear_by(layer_forms.one_product)


def _lycoris(x, rule, local, bias):
    """LyCORIS' fused Kronecker product, which knows one term."""
    from lycoris.functional.lokr import kron_bypass

    return bias + kron_bypass(x, rule[0].T, None, None, local[0].T, None, None, None, 1.0, backend="triton")


# what each is run as; a compiled form takes a while, so only bfloat16 and IEEE float32 have one
BANK_CONTENDERS = [
    *((own, (GRAPH, EAGER)) for own in ours(mk.mop_ffn, mop_arguments, GPU_BACKENDS)),
    (Contender("batched, three stages", bank_forms.three_stages), (GRAPH, EAGER)),
    (Contender("batched, W as one product", bank_forms.built_weights), (GRAPH,)),
    (Contender("torch.compile, three stages", bank_forms.three_stages, compiled=True), (GRAPH,)),
    (Contender("torch.compile, W as one product", bank_forms.built_weights, compiled=True), (GRAPH,)),
    (Contender("pair by pair, one einsum a map", bank_forms.pair_by_pair(layer_forms.one_einsum)), (EAGER,)),
]
LAYER_CONTENDERS = [
    *((own, (GRAPH, EAGER)) for own in ours(mk.lowrank_phm_linear, backends=GPU_BACKENDS)),
    (Contender("three stages", layer_forms.three_stages), (GRAPH,)),
    (Contender("torch.compile, three stages", layer_forms.three_stages, compiled=True), (GRAPH,)),
    (Contender("dense F.linear", kind="stand-in", prepare=layer_forms.dense), (GRAPH, EAGER)),
]
FULL_CONTENDERS = [
    *((own, (GRAPH, EAGER)) for own in ours(mk.phm_linear, backends=GPU_BACKENDS)),
    (Contender("W as one product", full_by_one_product), (GRAPH,)),
    (Contender("local first", layer_forms.local_first), (GRAPH,)),
    (Contender("torch.compile, W as one product", full_by_one_product, compiled=True), (GRAPH,)),
    (Contender("dense F.linear", kind="stand-in", prepare=layer_forms.dense), (GRAPH,)),
]
ONE_TERM = Work("phm_linear", "4096 rows, 1024 -> 1024, one term", Shape(4096, 1, 32, 32, 32, 32, 1))
ONE_TERM_CONTENDERS = [
    *((own, (GRAPH,)) for own in ours(mk.phm_linear, backends=GPU_BACKENDS)),
    (Contender("LyCORIS kron_bypass, Triton", _lycoris), (GRAPH,)),
]
CONTENDERS = {
    BANK: BANK_CONTENDERS,
    LAYER: LAYER_CONTENDERS,
    FULL: FULL_CONTENDERS,
    ONE_TERM: ONE_TERM_CONTENDERS,
}
JUDGES = {
    "mop_ffn": lambda *tensors: reference.mop_ffn(*testing.as_mop_arguments(tensors)),
    "lowrank_phm_linear": reference.lowrank_phm_linear,
    "phm_linear": reference.phm_linear,
}
SMALL = {
    "mop_ffn": testing.BANKS["small"],
    "lowrank_phm_linear": Shape(8, 4, 4, 4, 4, 4, 1),
    "phm_linear": Shape(8, 4, 4, 4, 4, 4, 1),
}
# float16 runs at bfloat16's rates; the interpreter's bfloat16 is wrong, and TF32 no different there
NAMES = ("bfloat16", "float32", "tf32") if device_timer.on_gpu() else ("float16", "float32")
TIMED = sorted((p for p in PRECISIONS if p.name in NAMES), key=lambda p: NAMES.index(p.name))
OF_THE_BANK = [
    (precision, direction, contender, ways)
    for precision in TIMED
    for direction in (FORWARD, BOTH)
    for contender, ways in BANK_CONTENDERS
    if contender.kind == "ours"
]
CASES = sorted(
    (
        (work, precision, contender, ways)
        for work, contenders in CONTENDERS.items()
        for precision in TIMED
        for contender, ways in contenders
        if not (contender.compiled and precision.tf32) and not (work is BANK and contender.kind == "ours")
    ),
    key=lambda case: case[2].compiled,
)


@pytest.fixture(autouse=True)
def on_the_device():
    with torch.device(testing.device_of("triton")):
        yield


@pytest.fixture(scope="module")
def keep(full_size):
    """keep(row): at once into the file that MOP_DEVICE_RESULTS names, so that a run that is stopped leaves its rows."""
    file = os.environ.get("MOP_DEVICE_RESULTS")
    with torch.device(testing.device_of("triton")):
        found = {"rates": device_timer.rates(full_size), "rows": []}

    def add(row: dict) -> None:
        found["rows"].append(row)
        if file is not None:
            beside = Path(file).with_suffix(".part")
            beside.write_text(json.dumps(found, indent=1) + "\n")
            beside.replace(file)

    return add


@pytest.fixture(scope="module")
def case_of(full_size):
    """The case of a work and precision; only the last is kept, and the tests of one follow each other."""
    kept = {}

    def make(work: Work, precision) -> Case:
        if (work, precision) not in kept:
            kept.clear()
            shape = work.shape if full_size else SMALL[work.op]
            shape = shape._replace(terms=1) if work is ONE_TERM else shape
            sized = work._replace(shape=shape)
            with torch.device(testing.device_of("triton")):
                tensors = sized.inputs(precision.dtype)
                # of a rounding's size: eager sums of a few stages
                eps = 2.0**-10 if precision.tf32 else torch.finfo(precision.dtype).eps
                loose = max(1e-4, 16 * eps)
                label, adds = f"{work.op}, {work.label}", sized.multiply_adds()
                # bfloat16 hidden rows lie within rounding of relu's kink too often to judge gradients of other forms
                only = work is BANK and (precision.dtype.itemsize == 2 or precision.tf32)
                case = Case(label, tensors, JUDGES[work.op], adds, full_size, outputs_only=only, loose=loose)
            kept[work, precision] = case
        return kept[work, precision]

    return make


@pytest.fixture
def time_it(case_of, full_size, keep):
    """time_it(work, precision, contender, ways, direction): prove a contender right, and keep its times."""

    def run(*arguments) -> None:
        _time(*arguments, case_of, full_size, keep)

    return run


@pytest.mark.parametrize(
    ("precision", "direction", "contender", "ways"),
    OF_THE_BANK,
    ids=[f"{contender.name}; {precision.name}; {way}" for precision, way, contender, _ in OF_THE_BANK],
)
def test_the_bank(precision, direction, contender, ways, time_it):
    time_it(BANK, precision, contender, ways, direction)


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize(
    ("work", "precision", "contender", "ways"),
    CASES,
    ids=[f"{contender.name}; {work.label}; {precision.name}" for work, precision, contender, _ in CASES],
)
def test_device(work, precision, contender, ways, direction, time_it):
    time_it(work, precision, contender, ways, direction)


def _time(work, precision, contender, ways, direction, case_of, full_size, keep) -> None:
    backend = contender.name.removeprefix("mop_kernels ") if contender.kind == "ours" else None
    if backend is not None and backends.why_not(backend) is not None:
        pytest.skip(backends.why_not(backend))
    if contender.compiled and not full_size:
        pytest.skip("compiling takes a while, and says nothing about small cases")
    if "LyCORIS" in contender.name:
        try:
            importlib.import_module("lycoris")
        except ImportError as error:
            pytest.skip(f"lycoris cannot be imported: {error}")
    with precision.in_force():
        case = case_of(work, precision)
        function, tensors = case.ready(contender)
        call = function
        if direction == BOTH:
            tensors = [t if t.requires_grad else t.clone().requires_grad_() for t in tensors]

            def call(*leaves):
                return torch.autograd.grad(function(*leaves), leaves, case.grads)

        flops, nbytes = work.least_work(precision.dtype, direction)
        # what `prepare` made may hold tensors of its own, which cannot be copied from here
        inputs = [tensors] if contender.prepare else device_timer.copies_past_the_cache(tensors, nbytes)
        for way in ways:
            timer = device_timer.graph_times if way == GRAPH else device_timer.eager_times
            with torch.set_grad_enabled(direction == BOTH):
                rounds = (50 if way == GRAPH else 7) if full_size else 1
                times = timer(call, inputs, rounds)
            keep(
                {
                    "group": group_of(work, precision.name, direction),
                    "name": contender.name + (", eager" if way == EAGER else ""),
                    "kind": contender.kind,
                    **device_timer.summary(times),
                    "flops": flops,
                    "bytes": nbytes,
                }
            )


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
@pytest.mark.parametrize("name", [*GPU_BACKENDS, "F.linear"])
def test_host_cost(name, gradients, full_size, keep):
    tensors = testing.linear_inputs(SMALL["phm_linear"], torch.float32)
    if name == "F.linear":
        function, kind, tensors = F.linear, "form", [tensors[0], torch.randn(16, 16), tensors[3]]
    else:
        if backends.why_not(name) is not None:
            pytest.skip(backends.why_not(name))
        (own,) = ours(mk.phm_linear, backends=(name,))
        name, function, kind = own.name, own.function, own.kind
    if gradients:
        tensors = [t.requires_grad_() for t in tensors]
    times = device_timer.host_times(function, tensors, *((200, 20) if full_size else (1, 2)))
    group = f"host cost of a call (phm_linear 16 -> 16, 8 rows), {'with' if gradients else 'without'} gradients"
    keep({"group": group, "name": name, "kind": kind, **device_timer.summary(times)})
