"""The tiny launch that decides whether a backend of GPUs is taken: on pretended machines."""

import warnings
from typing import NamedTuple

import pytest
import torch
from errors import raises, warns
from torch._subclasses.fake_tensor import FakeTensorMode

import mop_kernels as mk
from mop_kernels import backends, env_report, explain, ops, reference, self_check, testing

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    monkeypatch.delenv("MOP_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_warned", set())


class Machine(NamedTuple):
    """A pretended one: the capability of each GPU, what the launch of each (backend, GPU) gave, and all launches."""

    capabilities: list[tuple[int, int]]
    failures: dict[tuple[str, int], str]
    launches: list[tuple[str, int]]


@pytest.fixture
def machine(monkeypatch) -> Machine:
    """With two new GPUs and both backends, until the test says otherwise."""
    found = Machine([(9, 0), (9, 0)], {}, [])

    def launch(backend, device):
        found.launches.append((backend, device.index))
        return found.failures.get((backend, device.index))

    monkeypatch.setattr(self_check, "_launch", launch)
    monkeypatch.setattr(self_check, "failures", set())
    monkeypatch.setattr(backends, "_verdicts", {})
    monkeypatch.setattr(backends, "_C_cuda", object())
    monkeypatch.setattr(backends, "_EMULATED_CUDA", None)
    monkeypatch.setattr(backends, "_crossovers", {})
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found.capabilities))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found.capabilities[index])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


def chosen_on(index: int, backend: str | None = None) -> str:
    return backends.resolve(backend, torch.device("cuda", index), torch.float32, "mop_ffn", 1000)


def test_the_tensor_s_own_gpu_decides(machine):
    """An old GPU beside a new one takes Triton, and takes the CUDA kernels from no other."""
    machine.capabilities[1] = (7, 5)
    assert (chosen_on(0), chosen_on(1)) == ("cuda", "triton")
    with raises(RuntimeError, "8.0", "cuda:1", "7.5", "backend="):
        chosen_on(1, "cuda")
    assert "cuda" in mk.available_backends()
    machine.capabilities[0] = (7, 0)
    backends._verdicts.clear()
    assert "cuda" not in mk.available_backends()


FAILED = "a tiny launch on cuda:0 raised RuntimeError: no kernel image"


def test_what_does_not_launch_is_left_out_with_one_warning(machine):
    machine.failures["cuda", 0] = FAILED
    with warns(UserWarning, "mop_kernels", "'cuda'", FAILED):
        assert chosen_on(0) == "triton"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (chosen_on(0), chosen_on(1)) == ("triton", "cuda")
        assert f"not here: cuda ({FAILED})" in explained_on_a_gpu()
        assert "not here: cuda" in explain.reason_of(None, GPU, torch.float32, "mop_ffn", 1000)
    with raises(RuntimeError, "'cuda'", "backend=", FAILED):
        chosen_on(0, "cuda")
    assert sorted(machine.launches) == [(b, k) for b in ("cuda", "triton") for k in (0, 1)], "once each"


def explained_on_a_gpu() -> str:
    with FakeTensorMode():  # tensors of a GPU that is not here
        return mk.explain_backend("phm_weight", torch.empty(1, device="cuda:0"))


def test_where_nothing_launches_the_reference_computes(machine):
    machine.failures.update({("cuda", 0): FAILED, ("triton", 0): FAILED.replace("no kernel image", "no C compiler")})
    with warns(UserWarning, "mop_kernels") as caught:
        assert chosen_on(0) == "reference"
    said = [str(warning.message) for warning in caught]
    assert [text.split(":")[0] for text in said] == [
        "mop_kernels leaves its backend 'cuda' out",
        "mop_kernels leaves its backend 'triton' out",
        "mop_kernels uses its slow reference backend",
    ]
    assert all("no C compiler" in text for text in said[1:])


def test_nothing_is_launched_into_a_capture(machine, monkeypatch):
    machine.failures["cuda", 0] = FAILED
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert (chosen_on(0), machine.launches) == ("cuda", [])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with warns(UserWarning, "mop_kernels", "'cuda'"):
        assert chosen_on(0) == "triton"


@pytest.mark.parametrize("failed", [None, FAILED])
def test_a_compiled_program_asks_once_and_traces_no_launch(machine, failed, monkeypatch):
    monkeypatch.setattr(backends, "_missing", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # Dynamo would ask the GPU for its properties
    if failed:
        machine.failures["cuda", 0] = failed
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager", dynamic=False)
    def program(x):
        return x + len(chosen_on(0))

    with torch.no_grad():
        assert program(torch.zeros(1)).item() == len("triton" if failed else "cuda")
    assert sorted(machine.launches) == [("cuda", 0), ("triton", 0)]


def test_a_check_of_each_operation_trusts_every_backend(machine):
    machine.failures["cuda", 0] = FAILED
    with self_check.off():
        assert (chosen_on(0, "cuda"), machine.launches) == ("cuda", [])
    with pytest.raises(RuntimeError, match="no kernel image"):
        chosen_on(0, "cuda")
    with self_check.off():
        assert chosen_on(0, "cuda") == "cuda"


def test_the_environment_report_repeats_it(machine, monkeypatch):
    machine.failures["cuda", 1] = FAILED.replace("cuda:0", "cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"Test GPU {index}")
    facts = env_report.collect()
    assert facts["gpu"] == "Test GPU 0 (9.0), Test GPU 1 (9.0)"
    assert facts["backends"].endswith("triton, cuda")
    assert facts["no cuda on cuda:1"] == machine.failures["cuda", 1]


def test_the_tiny_launch_is_right(backend, monkeypatch):
    """Wherever the first call stands: a transform of torch.func would see it, warnings may be errors."""
    monkeypatch.setattr(self_check, "device_of", lambda index: testing.device_of(backend))
    found = [self_check.failure(backend, 0)]

    def in_a_transform(x):
        found.append(self_check.failure(backend, 0))
        return x.sum()

    x = torch.ones(2)
    torch.func.hessian(lambda x: x.square().sum())(x)  # torch warns of what it uses itself, the first time
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.jvp(in_a_transform, (x,), (x,))
        torch.func.hessian(in_a_transform)(x)
        torch.func.vmap(in_a_transform)(torch.ones(2, 2))
    assert len(found) >= 4
    assert set(found) == {None}


def test_a_lack_of_memory_says_nothing_of_a_backend(machine, monkeypatch):
    def out_of_memory(backend, device):
        raise torch.OutOfMemoryError("no room")

    working = self_check._launch
    monkeypatch.setattr(self_check, "_launch", out_of_memory)
    assert chosen_on(0) == "cuda"
    machine.failures["cuda", 0] = FAILED
    monkeypatch.setattr(self_check, "_launch", working)
    with warns(UserWarning, "mop_kernels", "'cuda'"):
        assert chosen_on(0) == "triton"


def test_one_gpu_that_works_is_enough_to_be_available(machine):
    machine.failures["cuda", 0] = FAILED
    mk.available_backends()
    assert machine.launches == [("triton", 0), ("cuda", 0), ("cuda", 1)]


def wrong(by: float):
    return lambda rule, local: reference.phm_weight(rule, local) + by


def does_not_launch(rule, local):
    raise RuntimeError("no kernel image\nand more")


CURE = "; python -m mop_kernels.check --device cuda shows what fails"


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        (wrong(0.5), "differs from the reference by 0.5"),
        (wrong(float("nan")), "differs from the reference by nan"),
        (
            lambda *t: reference.phm_weight(*t).double(),
            "gave (6, 8) of torch.float64 instead of",
        ),
        (lambda *t: reference.phm_weight(*t)[:1], "gave (1, 8) of torch.float32 instead of"),
        (does_not_launch, "raised RuntimeError: no kernel image"),
    ],
)
def test_what_a_tiny_launch_can_show(launched, said, monkeypatch):
    monkeypatch.setattr(ops, "get", lambda name, backend: launched)
    monkeypatch.setattr(self_check, "failures", set())
    monkeypatch.setattr(self_check, "device_of", lambda index: torch.device("cpu"))
    with torch.inference_mode(), FakeTensorMode(), torch.autocast("cpu"), torch.device("meta"):
        found = self_check.failure("triton", 0)
    assert found.startswith(f"a tiny launch on cpu {said}")
    assert found.endswith(CURE)
    assert self_check.failures == {found}
