"""ZeRO-2 and ZeRO-3 of DeepSpeed on two gloo processes, against one process without DeepSpeed.

deepspeed compiles an operation at its first start, so it is not among the packages of this folder. To run this file:
DS_BUILD_OPS=0 pip install --no-build-isolation --target FOLDER deepspeed, and FOLDER on PYTHONPATH.
"""

from importlib.util import find_spec

import mop_t5
import pytest
import sharded_worker as worker
import torch
from errors import raises, says

if find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

ALONE = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
CODE = """
from pathlib import Path
import sharded_worker
from two_processes import in_two_processes
in_two_processes(lambda: sharded_worker.run_zero(Path({!r})))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def ranks(folder, forks_with_t5):
    forks_with_t5.run(CODE.format(str(folder)), **ALONE)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {name: worker.of_zero(folder, name, "no", 1) for name in worker.ZERO}


def values(result, name):
    return [point[name] for point in result["history"] if name in point]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("name", worker.ZERO)
def test_two_processes_train_and_resume_as_one(ranks, alone, name, stage):
    for found, expected in zip(ranks[0][name, stage], alone[name], strict=True):  # as a whole, and resumed
        for value in ("loss", "grad_norm", "eval_rouge"):
            assert values(found, value) == pytest.approx(values(expected, value), rel=1e-4)
        assert len(values(found, "loss")) in (4, 5)
        assert found["weights"].keys() == expected["weights"].keys()
        for parameter, weight in expected["weights"].items():
            torch.testing.assert_close(found["weights"][parameter], weight, rtol=1e-3, atol=1e-4)
        assert torch.equal(found["ids"], expected["ids"])


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_checkpoints_hold_the_whole_method_and_no_frozen_weight(folder, ranks, stage):
    for checkpoint in (folder / stage / "prefix_tuning" / "checkpoints").glob("checkpoint-*"):
        model = mop_t5.load(mop_t5.detach(worker.new_model("prefix_tuning", torch.float32)), checkpoint)
        assert all(p.numel() and p.isfinite().all() for p in model.mop.parameters())
        (states,) = checkpoint.glob("global_step*/*_model_states.pt") if stage == "zero2" else [None]
        if states is not None:
            saved = torch.load(states, weights_only=False)["module"]
            assert not any(name.startswith("encoder.block") for name in saved)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_nan_on_one_process_stops_both(ranks, stage):
    for rank in ranks:
        says(rank["nan", stage], "FloatingPointError", "step 3", "not finite", "checkpoint-2")


def test_what_zero_cannot_do_is_refused(ranks):
    for rank in ranks:
        says(rank["mop"], "ValueError", "shard", "fsdp", "zero3", "experts")
        says(rank["alternate"], "ValueError", "shard", "fsdp", "zero3")
        says(rank["float64"], "ValueError", "float64", "float32")
        says(rank["attach"], "TypeError", "sharded", "DeepSpeed")


def test_another_number_of_processes_does_not_resume(folder, ranks):
    with raises(ValueError, "checkpoint-", "zero2", "2 processes", "shard"):
        worker.trained(folder / "zero2", "prefix_tuning", 1, resume=True, **worker.LONGER)
