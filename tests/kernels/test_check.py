"""`python -m mop_kernels.check`: what is right passes, and each kind of fault is named and ends with status 1."""

import itertools

import pytest
import torch
from errors import says

from mop_kernels import backends, check, testing
from mop_kernels.step import STEP_OPERATIONS

FEW = ("one_row", "no_row", "bank reading_b, gelu, experts [2, 0]", "prompts no_position")


@pytest.fixture(autouse=True)
def few_cases(monkeypatch):
    few = {op: {label: of_op[label] for label in FEW if label in of_op} for op, of_op in check.cases().items()}
    monkeypatch.setattr(check, "cases", lambda: few)


def change_results(monkeypatch, op: str, change) -> None:
    """Let what the named backends compute of `op` pass through change(result); the reference's stays."""
    every = check.cases()

    def changed(case):
        def function(*tensors, backend):
            result = case.function(*tensors, backend=backend)
            return result if backend == "reference" else change(result)

        return case._replace(function=function)

    some = every | {op: {label: changed(case) for label, case in every[op].items()}}
    monkeypatch.setattr(check, "cases", lambda: some)


def test_every_operation_is_checked_in_every_dtype_that_a_backend_takes(backend, capsys):
    assert check.main(["--backend", backend, "--device", torch.get_default_device().type]) == 0
    said = capsys.readouterr().out
    taken = [d for d in check.DTYPES if check.takes(backend, torch.get_default_device().type, d, "")]
    ops = {"phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn", "attempt_mix", *STEP_OPERATIONS}
    ops -= set(backends.WITHOUT.get(backend, ()))
    rows = sorted(line.split()[:3] for line in said.splitlines() if line.endswith(" ok"))
    assert rows == sorted([op, str(d).removeprefix("torch."), backend] for op, d in itertools.product(ops, taken))
    assert f"{len(rows)} of {len(rows)} rows are right." in said


@pytest.mark.skipif(backends.why_not("cpu") is not None, reason="needs the compiled module")
@pytest.mark.parametrize("factor", [1.01, float("nan")], ids=["wrong", "not a number"])
def test_what_is_wrong_is_named(factor, monkeypatch, capsys):
    change_results(monkeypatch, "phm_linear", lambda y: y * factor)
    assert check.main(["--backend", "cpu", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert {line.split()[0] for line in said.splitlines() if line.endswith(" FAILED")} == {"phm_linear"}
    assert "phm_linear by cpu in float32, one_row: relative errors " in said
    assert said.endswith(" of 33 rows are right.\n")


@pytest.mark.skipif(backends.why_not("cpu") is not None, reason="needs the compiled module")
def test_a_wrong_gradient_alone_is_seen(monkeypatch, capsys):
    change_results(monkeypatch, "lowrank_phm_linear", lambda y: y.detach() + 1.01 * (y - y.detach()))
    assert check.main(["--backend", "cpu", "--device", "cpu"]) == 1
    assert "lowrank_phm_linear by cpu in float64, one_row: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "lose",
    [
        lambda outputs, grads: (outputs[:1], grads),
        lambda outputs, grads: (outputs, grads[:1]),
        lambda outputs, grads: (outputs, [None] * len(grads)),
        lambda outputs, grads: (outputs, [grads[0], grads[1] * float("nan"), *grads[2:]]),
    ],
    ids=["an output", "gradients", "every gradient", "a number"],
)
def test_a_missing_result_is_a_failure(lose, monkeypatch):
    ((label, case),) = check.cases()["mop_ffn"].items()
    known = check.exact(label, case, torch.float64)
    row = check.Row("mop_ffn", "reference", "float64", 1)
    assert not check.judge(row, known).failures
    computed = testing.value_and_gradients
    monkeypatch.setattr(testing, "value_and_gradients", lambda *arguments: lose(*computed(*arguments)))
    failed = check.judge(row, known)
    assert len(failed.failures) == 1
    assert max(failed.forward, failed.backward) == float("inf")


@pytest.mark.skipif(backends.why_not("cpu") is not None, reason="needs the compiled module")
def test_what_raises_stops_no_other(monkeypatch, capsys):
    def fail(result):
        raise RuntimeError("no kernel image\nand more")

    change_results(monkeypatch, "mop_ffn", fail)
    assert check.main(["--backend", "cpu", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "mop_ffn by cpu in float64, bank reading_b, gelu, experts [2, 0]: RuntimeError: no kernel image\n" in said
    assert "30 of 33 rows are right." in said


def test_a_backend_that_is_named_must_be_here(monkeypatch, capsys):
    monkeypatch.setattr(backends, "_C", None)
    assert check.main(["--backend", "cpu", "--backend", "reference", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    says(said, "cpu", "not here", "mop_kernels._C")
    assert "44 of 44 rows are right." in said


@pytest.mark.parametrize("device", ["gpu", "cuda:63", "meta"])
def test_a_device_that_is_not_here(device, capsys):
    with pytest.raises(SystemExit):
        check.main(["--device", device])
    said = capsys.readouterr().err
    says(said, "--device")
    assert f"got {device!r}" in said
