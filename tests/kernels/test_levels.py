"""The lower instruction levels, which machines like this one never choose by themselves."""

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
def test_values_and_gradients_of_a_lower_level(level, forks_with_t5):
    names = ("phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn", "mop_ffn_experts", "attempt_mix")
    names += ("rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout", "prefix_attention")
    files = [str(HERE / f"test_{name}.py") for name in names]
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-k", OF_KERNELS, *files]
    said = forks_with_t5.run(
        f"{LEVEL}\nimport pytest\nassert not pytest.main({arguments!r})", MOP_KERNELS_CPU_LEVEL=level
    )
    assert said.startswith(f"{level}\n")
    assert " passed" in said
