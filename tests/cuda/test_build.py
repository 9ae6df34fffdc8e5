"""What is compiled where: with nvcc, without it, and where nothing is to be compiled. Every decision is said."""

from errors import says

SAID = """
from mop_kernels import available_backends, backends
print(*available_backends(), sep=",")
print(backends.build_info().get("cuda"))
print(backends.why_not("cuda"))
"""
WHY = """
import torch
from mop_kernels import backends
print(torch.version.cuda is None, torch.cuda.is_available(), backends.why_not("cuda"), sep="|")
"""


def test_with_nvcc(with_nvcc):
    """Asked for, also for a torch without CUDA; there the module is not imported, and this is said."""
    says(with_nvcc.log, "CUDA kernels", "built", "nvcc")
    assert len(list(with_nvcc.folder.glob("mop_kernels/_C_cuda*.so"))) == 1
    available, decision, _ = with_nvcc.run(SAID).splitlines()
    assert "cpu" in available.split(",")
    assert decision.startswith("built by nvcc")
    assert decision.endswith("for 8.0;9.0+PTX")
    cpu_torch, gpu, why = with_nvcc.run(WHY).split("|")
    if cpu_torch == "True":
        says(why, "torch", "without CUDA")
    else:
        assert why == ("None" if gpu == "True" else "torch sees no CUDA GPU")


def test_only_the_stream_is_missing_in_a_torch_without_cuda(with_nvcc):
    """Any other would be a mistake of ours."""
    script = """
import torch
try:
    import mop_kernels._C_cuda
    print("imported")
except ImportError as error:
    print(error)
"""
    said = with_nvcc.run(script)
    cpu_torch = with_nvcc.run(WHY).startswith("True")
    assert said.endswith("undefined symbol: aoti_torch_get_current_cuda_stream") if cpu_torch else said == "imported"


def test_without_nvcc(built, tmp_path):
    found = built(CUDA_HOME=str(tmp_path))
    assert found.status == 0, found.log
    says(found.log, "CUDA kernels", "not built", "nvcc", "CUDA_HOME")
    assert not list(found.folder.glob("mop_kernels/_C_cuda*.so"))
    available, decision, why = found.run(SAID).splitlines()
    assert "cpu" in available.split(",")
    says(decision, "not built", "nvcc")
    assert "_C_cuda is missing" in why
    says(why, "nvcc")


def test_nothing_is_compiled(built):
    found = built(MOP_KERNELS_SKIP_BUILD="1")
    assert found.status == 0, found.log
    says(found.log, "without compiled kernels", "MOP_KERNELS_SKIP_BUILD=1")
    assert not list(found.folder.glob("mop_kernels/*.so"))
    assert found.run(SAID).splitlines()[0].split(",")[0] == "reference"
    assert "cpu" not in found.run(SAID).splitlines()[0].split(",")


def test_cuda_that_is_asked_for_and_cannot_be_built(built, tmp_path):
    found = built(MOP_KERNELS_WITH_CUDA="1", CUDA_HOME=str(tmp_path))
    assert found.status != 0
    says(found.log, "MOP_KERNELS_WITH_CUDA=1", "nvcc", "CUDA_HOME")


def test_a_setting_that_means_nothing(built):
    found = built(MOP_KERNELS_WITH_CUDA="yes")
    assert found.status != 0
    says(found.log, "MOP_KERNELS_WITH_CUDA", "0", "1", "'yes'")
