"""The lower instruction levels, which machines like this one never choose by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mop_kernels import backends

HERE = Path(__file__).parent
# Of each kernel: values and all gradients of its shapes, layouts and forms.
OF_KERNELS = "cpu and (named or layouts or every_way or sharing or test_activations)"
HIGHEST = backends.build_info().get("vector_level_here")
LOWER = {"avx512": ["avx2", "plain"], "avx2": ["plain"]}.get(HIGHEST, [])

LEVEL = "from mop_kernels import backends; print(backends.build_info()['vector_level_here'])"


@pytest.mark.parametrize("level", LOWER)
def test_values_and_gradients_of_a_lower_level(level):
    names = ("phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn", "mop_ffn_experts", "attempt_mix")
    names += ("rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout", "prefix_attention")
    files = [str(HERE / f"test_{name}.py") for name in names]
    script = f"{LEVEL}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "-q", "-x", "-p", "no:cacheprovider", "-k", OF_KERNELS, *files]
    run = subprocess.run(
        command, env=os.environ | {"MOP_KERNELS_CPU_LEVEL": level}, capture_output=True, text=True, cwd=HERE.parents[1]
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert run.stdout.startswith(f"{level}\n")
    assert " passed" in run.stdout
