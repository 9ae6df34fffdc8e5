"""The level without AVX2, which machines like this one never choose by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mop_kernels import backends

HERE = Path(__file__).parent
# Of each kernel: values and all gradients of its shapes, layouts and forms.
OF_KERNELS = "cpu and (named or layouts or every_way or sharing or test_activations)"
PLAIN = os.environ | {"MOP_KERNELS_CPU_LEVEL": "plain"}


LEVEL = "from mop_kernels import backends; print(backends.build_info()['vector_level_here'])"


@pytest.mark.skipif(backends.build_info().get("vector_level_here") != "avx2", reason="this run is of the plain level")
def test_values_and_gradients_of_the_plain_level():
    names = ("phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn", "mop_ffn_experts", "attempt_mix")
    names += ("rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout", "prefix_attention")
    files = [str(HERE / f"test_{name}.py") for name in names]
    script = f"{LEVEL}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "-q", "-x", "-p", "no:cacheprovider", "-k", OF_KERNELS, *files]
    run = subprocess.run(command, env=PLAIN, capture_output=True, text=True, cwd=HERE.parents[1])
    assert run.returncode == 0, run.stdout[-3000:]
    assert run.stdout.startswith("plain\n")
    assert " passed" in run.stdout
