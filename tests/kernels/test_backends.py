"""The order of choice: argument, use_backend, environment variable, auto; what is named never falls back."""

import json
import re
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from errors import raises, says, warns

import mop_kernels as mk
from mop_kernels import backends, explain, operation, testing
from mop_kernels.testing import SHAPES

TENSORS = testing.lowrank_inputs(SHAPES["odd"], torch.float32)


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    monkeypatch.delenv("MOP_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_warned", set())


def explained(**kwargs) -> str:
    return mk.explain_backend("lowrank_phm_linear", *TENSORS, **kwargs)


def pretend_there_is_no_compiled_module(monkeypatch):
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(operation, "_ready", {})  # calls that have run on it


def test_reference_is_always_there():
    assert mk.available_backends()[0] == "reference"
    assert set(mk.available_backends()) <= set(backends.NAMES)


def test_argument_beats_use_backend_beats_environment_beats_auto(monkeypatch):
    best = "cpu" if "cpu" in mk.available_backends() else "reference"
    assert f"backend {best} (auto" in explained()
    monkeypatch.setenv("MOP_KERNELS_BACKEND", "reference")
    says(explained(), "reference", "MOP_KERNELS_BACKEND")
    with mk.use_backend("auto"):
        assert f"backend {best} (auto" in explained()
    with mk.use_backend("reference"):
        monkeypatch.setenv("MOP_KERNELS_BACKEND", "nonsense")
        says(explained(), "reference", "use_backend")
        says(explained(backend="reference"), "reference", "backend=")
        assert f"backend {best} (auto" in explained(backend="auto")


def test_an_empty_environment_variable_asks_for_nothing(monkeypatch):
    monkeypatch.setenv("MOP_KERNELS_BACKEND", "")
    assert "(auto" in explained()


def test_use_backend_nests_and_ends_with_the_block():
    with mk.use_backend("reference"):
        with mk.use_backend("auto"):
            assert "(auto" in explained()
        assert "asked for by use_backend" in explained()
    assert "(auto" in explained()


def test_use_backend_holds_in_other_threads():
    """autograd's own threads must take the backend of the forward pass, data loader threads that of the process."""
    seen = []
    with mk.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(explained()))
        thread.start()
        thread.join()
    assert "asked for by use_backend" in seen[0]


def test_backward_takes_the_backend_of_forward(backend):
    leaves = [t.requires_grad_() for t in testing.lowrank_inputs(SHAPES["odd"], torch.float32)]
    y = mk.lowrank_phm_linear(*leaves, backend=backend)
    with mk.use_backend("cuda"):
        y.sum().backward()
    assert leaves[0].grad is not None


def test_unknown_names(monkeypatch):
    message = ("backend", "'auto', 'reference', 'cpu', 'triton', 'cuda'", "'gpu'")
    with raises(ValueError, *message):
        mk.lowrank_phm_linear(*TENSORS, backend="gpu")
    with raises(ValueError, *message), mk.use_backend("gpu"):
        pass
    monkeypatch.setenv("MOP_KERNELS_BACKEND", "gpu")
    with raises(ValueError, *message):
        mk.lowrank_phm_linear(*TENSORS)
    with raises(TypeError, "backend", "int"):
        mk.lowrank_phm_linear(*TENSORS, backend=1)


ABSENT = ("mop_kernels._C", "pip install", "Available: reference")


def test_what_is_named_and_absent_raises(monkeypatch):
    pretend_there_is_no_compiled_module(monkeypatch)
    with raises(RuntimeError, "'cpu'", "backend=", *ABSENT):
        mk.lowrank_phm_linear(*TENSORS, backend="cpu")
    with mk.use_backend("cpu"), raises(RuntimeError, "'cpu'", "use_backend", *ABSENT):
        mk.lowrank_phm_linear(*TENSORS)
    monkeypatch.setenv("MOP_KERNELS_BACKEND", "cpu")
    with raises(RuntimeError, "'cpu'", "MOP_KERNELS_BACKEND", *ABSENT):
        mk.lowrank_phm_linear(*TENSORS)


@pytest.mark.parametrize("name", [name for name in backends.NAMES if name not in mk.available_backends()])
def test_backends_that_are_not_here_say_so(name):
    with raises(RuntimeError, f"backend '{name}'", "Available: reference"):
        mk.lowrank_phm_linear(*TENSORS, backend=name)
    assert f"not here: {name} (" in explained()


def test_a_dtype_the_named_backend_does_not_take():
    if "cpu" not in mk.available_backends():
        pytest.skip("the compiled module is not built")
    half = [t.half() for t in TENSORS]
    with raises(RuntimeError, "float32", "float64", "bfloat16", "torch.float16"):
        mk.lowrank_phm_linear(*half, backend="cpu")
    with warns(UserWarning, "reference", "float16"):
        assert mk.lowrank_phm_linear(*half).dtype == torch.float16


def test_auto_warns_once_where_it_is_slow(monkeypatch):
    pretend_there_is_no_compiled_module(monkeypatch)
    layer = mk.PHMLinear(12, 12)
    with warns(UserWarning, "reference", "backend='reference'") as caught:
        layer(torch.randn(2, 12))
    assert [w.filename for w in caught] == [__file__], "the warning points at the caller's line"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mk.lowrank_phm_linear(*TENSORS)


def test_a_named_reference_does_not_warn(monkeypatch):
    pretend_there_is_no_compiled_module(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mk.lowrank_phm_linear(*TENSORS, backend="reference")


@pytest.mark.parametrize("op", [mk.phm_weight, mk.phm_linear, mk.lowrank_phm_linear, mk.mop_ffn])
def test_explain_backend_of_every_operation(op, backend):
    first = TENSORS[op is mk.phm_weight].to(torch.get_default_device())
    by_function, by_name = (mk.explain_backend(o, first, backend=backend) for o in (op, op.__name__))
    assert by_function == by_name
    assert by_name.startswith(f"{op.__name__}: backend {backend} (asked for by the argument backend=)\nmethod: ")
    keyword = "rule" if op is mk.phm_weight else "x"
    assert mk.explain_backend(op, **{keyword: first}, backend=backend) == by_name


@pytest.mark.filterwarnings("ignore:mop_kernels uses its slow reference")
def test_explain_backend_sees_autocast():
    with torch.autocast("cpu", torch.float16):
        line = explained().splitlines()[0]
    assert "reference (auto" in line


def test_explain_backend_errors():
    with raises(ValueError, "op", "phm_weight", "'matmul'"):
        mk.explain_backend("matmul", TENSORS[0])
    with raises(TypeError, "explain_backend", "phm_linear", "NoneType"):
        mk.explain_backend("phm_linear")


@pytest.mark.parametrize("name", ["one_row", "many_rows"])
@pytest.mark.parametrize("op", ["phm_linear", "lowrank_phm_linear"])
def test_explain_gives_the_figures_of_the_cost_model(op, name, backend):
    inputs = testing.linear_inputs if op == "phm_linear" else testing.lowrank_inputs
    lines = mk.explain_backend(op, *inputs(SHAPES[name], torch.float32), backend=backend).splitlines()
    plans = [line for line in lines if line.startswith("plan, ")]
    assert bool(plans) == ((backend, op) in {("cpu", "phm_linear"), ("triton", "phm_linear"), ("triton", op)})
    for line in plans:
        taken, figures = re.match(r"plan, \w+: ([\w ]+); costs in [^:]+: (.+)", line).groups()
        costs = {
            way: float(cost.replace(",", "")) for way, cost in re.findall(r"([A-Za-z ]+) ([\d,.]+)(?:, |$)", figures)
        }
        assert len(costs) > 1
        assert costs[taken] == min(costs.values())


def test_explain_without_all_tensors_has_no_plan():
    assert "plan, " not in mk.explain_backend("phm_linear", TENSORS[0])


# On a GPU. What is on this machine is replaced: the choice itself computes nothing.

GPU = torch.device("cuda")


@pytest.fixture
def missing(monkeypatch) -> set[str]:
    """As on a machine with a "Test GPU", Triton and the CUDA module, less what the test adds to the set."""
    names = set()
    monkeypatch.setattr(backends, "why_not", lambda name, device=None: "not here" if name in names else None)
    monkeypatch.setattr(backends, "_crossovers", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="Test GPU"))
    return names


def chosen(multiply_adds: int, dtype=torch.bfloat16, op="mop_ffn") -> str:
    return backends.resolve(None, GPU, dtype, op, multiply_adds)


def test_on_a_gpu_small_work_goes_to_cuda_and_large_work_to_triton(missing):
    assert chosen(0) == chosen(backends.CUDA_UP_TO) == "cuda"
    assert chosen(backends.CUDA_UP_TO + 1) == "triton"
    why = explain.reason_of(None, GPU, torch.bfloat16, "mop_ffn", 12345)
    assert why == (
        "auto: CUDA kernels serve torch.bfloat16 on cuda; 12,345 multiply-adds, at most 268,435,456, an estimate"
    )
    why = explain.reason_of(None, GPU, torch.float16, "mop_ffn", 2**30)
    assert "Triton kernels serve torch.float16 on cuda; 1,073,741,824 multiply-adds, more than 268,435,456" in why


def test_on_a_gpu_the_other_is_taken_where_one_is_missing(missing):
    missing.add("cuda")
    assert chosen(0) == "triton"
    says(explain.reason_of(None, GPU, torch.float32), "Triton", "torch.float32 on cuda", "not here: cuda")
    missing.symmetric_difference_update({"cuda", "triton"})
    assert chosen(2**40) == "cuda"
    missing.add("cuda")
    with warns(UserWarning, "reference", "not here"):
        assert chosen(0) == "reference"


def test_on_a_gpu_float64_is_the_reference_s(missing):
    with warns(UserWarning, "float32, bfloat16, float16", "torch.float64"):
        assert chosen(0, torch.float64) == "reference"


def test_in_a_graph_the_device_s_time_alone_decides(missing, monkeypatch):
    """16-bit products take Triton's tensor cores there; in eager loops CUDA's cheaper call decides."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert [chosen(1000, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)] == ["cuda"] + 2 * [
        "triton"
    ]
    assert "an estimate of device times" in explain.reason_of(None, GPU, torch.bfloat16, "mop_ffn", 1000)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert (chosen(1000), chosen(1000, torch.float32)) == ("triton", "cuda")


def test_on_a_gpu_what_was_measured_decides(missing, monkeypatch):
    eager, graph = {"mop_ffn": {"bfloat16": 100}}, {"mop_ffn": {"bfloat16": 7}}
    measured = {"Test_GPU": {"eager": eager, "graph": graph}, "Other_GPU": {"eager": {"mop_ffn": {"float32": 1}}}}
    monkeypatch.setattr(backends, "_crossovers", measured)
    assert (chosen(100), chosen(101)) == ("cuda", "triton")
    assert "more than 100, measured on this GPU (eager)" in explain.reason_of(None, GPU, torch.bfloat16, "mop_ffn", 101)
    assert chosen(101, torch.float32) == chosen(101, op="phm_linear") == "cuda", "not measured: the estimate"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert (chosen(7), chosen(8)) == ("cuda", "triton")


def test_the_committed_measurements_can_be_read():
    assert backends._crossovers == {p.stem: json.loads(p.read_text()) for p in backends.CROSSOVERS.glob("*.json")}
    for ways in backends._crossovers.values():
        assert set(ways) <= {"eager", "graph"}
    for operations in (operations for ways in backends._crossovers.values() for operations in ways.values()):
        assert set(operations) <= {"phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn"}
        for dtypes in operations.values():
            assert set(dtypes) <= {"float32", "bfloat16", "float16"}
            assert all(isinstance(bound, int) and bound >= 0 for bound in dtypes.values())


def test_the_work_of_a_call_is_known_to_the_choice(monkeypatch):
    """By hand: paper_down is 16*(768 + 48*8 + 128) multiply-adds a row, the paper's bank 142.5 million in all."""
    seen = []
    monkeypatch.setattr(operation, "_ready", {})  # calls that have made their choice
    monkeypatch.setattr(backends, "resolve", lambda *args: seen.append(args[3:]) or "reference")
    x, rule_in, rule_out, local, _ = testing.lowrank_inputs(SHAPES["paper_down"], torch.float32)
    mk.lowrank_phm_linear(x, rule_in, rule_out, local)
    _, rule, local, _ = testing.linear_inputs(SHAPES["paper_down"], torch.float32)
    mk.phm_linear(x, rule, local)
    mk.phm_weight(rule.expand(3, *rule.shape), local)
    x, down, ups = testing.as_mop_arguments(testing.mop_inputs(testing.BANKS["paper"], torch.float32))
    bank = x, mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups]
    mk.mop_ffn(*bank)
    mk.mop_ffn(*bank, experts=torch.tensor([3, 1]))
    assert seen == [
        ("lowrank_phm_linear", 40 * 20480),
        ("phm_linear", 40 * 768 * 128),
        ("phm_weight", 3 * 16 * 768 * 128),
        ("mop_ffn", 142_540_800),
        ("mop_ffn", 142_540_800 * 2 // 5),
    ]
