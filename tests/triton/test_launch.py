"""Which launch configuration a kernel takes: forced, tuned for this GPU, or its own."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.support import launches, work
from mop_kernels.triton_kernels import launch
from mop_kernels.triton_kernels.device_functions import Phm
from mop_kernels.triton_kernels.phm_linear import local_first_configs, local_first_sizes

SIZES = {"rows": 40, "terms": 16}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def configs(sizes, dtype, multiprocessors):
    yield from ({"BLOCK_N": 16}, {"BLOCK_N": 8}, {"BLOCK_N": 16})


def configs_of_a_gpu(sizes, dtype, multiprocessors):
    yield {"BLOCK_N": multiprocessors}


def pick(device=CPU):
    return launch.pick("k", SIZES, torch.bfloat16, device, configs)


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """This machine's GPU is a "Test GPU", for which one kernel has been tuned."""
    monkeypatch.setattr(launch, "CONFIGS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    of_gpu = SimpleNamespace(multi_processor_count=108)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: of_gpu)
    launch._tuned.cache_clear()
    launch.multiprocessors.cache_clear()
    (tmp_path / "Test_GPU.json").write_text(json.dumps({"k": {"bfloat16 rows=40 terms=16": {"BLOCK_N": 64}}}))
    yield
    launch._tuned.cache_clear()
    launch.multiprocessors.cache_clear()


def test_its_own_where_nothing_was_tuned():
    assert pick() == {"BLOCK_N": 16}


def test_what_was_tuned_for_this_gpu(tuned):
    assert pick(GPU) == {"BLOCK_N": 64}
    assert pick() == {"BLOCK_N": 16}, "not for tensors that only have sizes"
    for other in ({"rows": 41, "terms": 16}, {"rows": 40}):
        assert launch.pick("k", other, torch.bfloat16, GPU, configs) == {"BLOCK_N": 16}
    assert launch.pick("k", SIZES, torch.float16, GPU, configs) == {"BLOCK_N": 16}
    assert launch.pick("other", SIZES, torch.bfloat16, GPU, configs) == {"BLOCK_N": 16}


def test_its_own_depends_on_the_multiprocessors_of_the_device(tuned):
    for device, count in ((GPU, 108), (CPU, 132), (torch.device("meta"), 132)):
        with launch.asked() as choices:
            config = launch.pick("other", SIZES, torch.bfloat16, device, configs_of_a_gpu)
        assert config == {"BLOCK_N": count}
        assert choices[0].candidates() == [config]


def test_tiles_of_a_gpu_without_tensor_cores_are_those_of_multiply_adds(monkeypatch):
    """128 KB of sums, which a T4 has no shared memory for, are tiles of tensor cores."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index else (8, 0))
    new, old = (launch.tensor_cores(torch.device("cuda", k)) for k in (0, 1))
    launch.tensor_cores.cache_clear()
    assert (new, old, launch.tensor_cores(CPU)) == (True, False, True)
    layer = 2**19, Phm(4, 4, 4, 4, 1024, 1024)
    for dtype in (torch.bfloat16, torch.float16):
        sizes = [local_first_sizes(*layer, dtype, cores) for cores in (True, False)]
        large, small = (next(local_first_configs(some, dtype, 40)) for some in sizes)
        assert large["BLOCK_N"] * 4 * 4 * large["BLOCK_V"] == 32768
        assert small["BLOCK_N"] * 4 * 4 * small["BLOCK_V"] == 8192
        assert (large["MIX_BY_DOT"], small["MIX_BY_DOT"]) == (True, False)


def test_forced_beats_tuned_and_ends_with_the_block(tuned):
    choice = launch.Choice("k", SIZES, torch.bfloat16, configs, 132)
    with launch.forced(choice, {"BLOCK_N": 2}):
        with launch.forced(choice, {"BLOCK_N": 4}):
            assert pick(GPU) == {"BLOCK_N": 4}
        assert pick(GPU) == {"BLOCK_N": 2}
        assert launch.pick("other", SIZES, torch.bfloat16, GPU, configs) == {"BLOCK_N": 16}
        assert launch.pick("k", {"rows": 1}, torch.bfloat16, GPU, configs) == {"BLOCK_N": 16}
    assert pick(GPU) == {"BLOCK_N": 64}


def test_choices_are_seen_with_their_candidates():
    with launch.asked() as choices:
        pick()
        launch.pick("rows", SIZES, torch.float32, CPU, configs_of_a_gpu)
    pick()
    assert [choice.kernel for choice in choices] == ["k", "rows"]
    assert choices[0].candidates() == [{"BLOCK_N": 16}, {"BLOCK_N": 8}], "its own comes first, each once"
    assert choices[1].candidates() == [{"BLOCK_N": 132}], "a kernel that proposes no other"


def test_every_file_of_tuned_configurations_can_be_read():
    for path in launch.CONFIGS.glob("*.json"):
        for kernel, keys in json.loads(path.read_text()).items():
            assert kernel.isidentifier()
            assert all(isinstance(value, int) for config in keys.values() for value in config.values())


@pytest.mark.parametrize(
    ("layers", "dtype", "gpu", "maps", "programs"),
    [
        (12, torch.float32, 132, 2, 300),  # 600 programs of one map would not all be resident
        (12, torch.float32, 170, 1, 600),
        (12, torch.bfloat16, 132, 1, 360),
        (24, torch.bfloat16, 132, 2, 360),
        (1, torch.float32, 132, 1, 150),  # too few even so: each program takes one of three blocks of v
        (1, torch.float32, 20, 1, 50),
    ],
    ids=str,
)
def test_a_bank_is_shared_by_as_many_programs_as_the_gpu_holds(layers, dtype, gpu, maps, programs, monkeypatch):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: gpu)
    bank = work.BANK._replace(shape=work.BANK.shape._replace(layers=layers))
    precision = next(p for p in work.PRECISIONS if p.dtype == dtype)
    (made,) = launches.made_by(bank, precision, work.FORWARD)
    assert made.meta["MAPS"] == maps
    assert made.grid == (programs,)
