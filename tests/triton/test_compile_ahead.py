"""Every kernel that the paper's shapes launch compiles for sm_90 and sm_80, spills nothing and fits shared memory.

`pytest -s tests/triton/test_compile_ahead.py` prints the table of registers and shared memory;
`python -m benchmarks.compile_table --candidates` compiles what tuning would try as well.
"""

import os

import pytest
import torch

from benchmarks import compile_table
from benchmarks.device_work import BOTH, PRECISIONS, WORK
from mop_kernels import backends

pytestmark = pytest.mark.skipif(backends.interpreting(), reason="Triton compiles nothing under TRITON_INTERPRET=1")

# on the older architecture the two dtypes whose kernels differ most
SETS = {90: PRECISIONS, 80: tuple(p for p in PRECISIONS if p.name in ("float32", "bfloat16"))}


@pytest.fixture(scope="module", params=SETS, ids="sm_{}".format)
def compiled(request, tmp_path_factory) -> list[compile_table.Compiled]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        arch, workers = request.param, min(os.cpu_count() or 1, 16)
        rows = compile_table.compile_all([arch], precisions=SETS[arch], workers=workers)
    print("", *compile_table.as_markdown(rows), sep="\n")
    return rows


def test_kernels_compile_and_fit(compiled):
    assert not compile_table.problems(compiled)


def test_every_operation_launches_kernels(compiled):
    """A recording that misses an operation would pass all else."""
    assert {row.work.split(",")[0] for row in compiled} == {work.op for work in WORK}


@pytest.mark.parametrize("work", WORK, ids=lambda work: f"{work.op}, {work.label}")
def test_every_dtype_has_launches(work):
    """Forward and backward, on tensors that only have sizes."""
    for precision in PRECISIONS:
        launches = compile_table.launches_of(work, precision, BOTH)
        assert launches
        tensors = [a for launch in launches for a in launch.arguments if isinstance(a, torch.Tensor)]
        assert precision.dtype in {t.dtype for t in tensors}


def test_what_is_wrong_is_named():
    row = compile_table.Compiled("k", "w", "float32", 80, "", 255, 8, 164 * 1024, 1.0)
    spill, shared = compile_table.problems([row])
    assert "8 bytes of registers spilled" in spill
    assert "sm_80" in shared
    assert len(compile_table.problems([row._replace(arch=90)])) == 1
