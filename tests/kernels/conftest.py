"""Every kernel test runs for all backends of this machine, on poisoned memory.

On a GPU the tensors of backends "triton" and "cuda" lie there: the fixture makes it torch's default device for the
test. Under TRITON_INTERPRET=1, or with MOP_KERNELS_EMULATE_CUDA set, the same kernels run on CPU tensors; `pytest
tests/kernels -k triton`, or `-k cuda`, is then what is worth running.
"""

import os

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # cuBLAS asks for it where deterministic forms are asked for

import contextlib

import pytest
import torch

from mop_kernels import available_backends, backends, testing

pytest.register_assert_rewrite("errors", "judging", "products")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty, in extensions too, comes filled with NaN, so that a number never written cannot pass."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # of torch's own CUDA operations a few have no deterministic form: they may only warn, the filling counts
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_numbers_every_run():
    """A bound that chance can break says nothing."""
    torch.manual_seed(0)


@pytest.fixture(params=available_backends())
def backend(request) -> str:
    """Its name; new tensors come on its device."""
    reason = why_not(request.param, request.node.callspec.params.get("dtype"))
    recorded = request.config.pluginmanager.hasplugin("launch_recorder")  # its launches are not run: all are quick
    of_a_gpu = request.param in ("triton", "cuda") and not recorded
    if of_a_gpu and backends.runs_on_cpu(request.param) and is_left_to_a_gpu(request):
        reason = "left to a GPU: too slow interpreted or emulated to run all cases"
    file, name = request.node.path.stem, request.node.callspec.params.get("name")
    for operation in backends.WITHOUT.get(request.param, ()):
        if file.startswith(f"test_{operation}") or name == operation:
            reason = f"it has no {operation}"
    if reason is not None:
        pytest.skip(reason)
    device = testing.device_of(request.param)
    with device if device.type != "cpu" else contextlib.nullcontext():
        yield request.param


# Too large for Triton's interpreter, where a program takes a twentieth of a second, and for emulated CUDA, where a
# barrier takes ten microseconds.
TOO_LARGE = ("test_the_bank_of_the_paper", "test_bias_gradient_of_very_many_rows")
# Of tests of many cases, those that run in the interpreter.
SHARINGS = ("mop", "no_both", "swapped", "x_per_pair", "only_x_per_pair")
INTERPRETED = {
    "test_sharing": {"sharing": SHARINGS},
    "test_values_and_gradients": {"sharing": SHARINGS, "chosen": ([4, 0],)},
    "test_row_gradients_are_the_dense_ones": {"sharing": ("mop", "no_both")},
    "test_row_gradients_of_every_dtype": {"full_rule": (False,)},
    "test_row_gradients_under_compile": {"backend": ()},
    "test_row_gradients_add_up": {"backend": ()},
    "test_the_others_get_zero_gradients": {"sharing": ("mop",)},
    "test_dtypes_and_full_rule": {"chosen": ([2, 0, 4, 1],)},
    "test_any_group_sizes": {"seed": (0, 1, 2)},
    "test_activations_far_from_zero": {"activation": ("gelu", "silu")},
    "test_without_bias": {"name": ("odd",), "sharing": ("mop", "no_both")},
    "test_full_rule": {"scope": ("layer",)},
    "test_layouts_of_inputs": {"name": ("odd",), "layout": ("sliced", "unaligned", "expanded")},
    "test_layouts_of_output_gradients": {"name": ("odd", "small")},
    "test_mop_ffn_computes_what_is_asked": {"experts": (None,)},
    "test_opcheck_of_mop_ffn": {"experts": (None,)},
    "test_aot_eager_of_mop_ffn": {"full_rule": (False,), "experts": (None,)},
    "test_every_way_of_phm_linear": {"shape": (testing.Shape(9, 2, 2, 6, 60, 50, 1),)},  # ways of the C++ one
    "test_what_is_asked_is_computed": {"asked": ([0], [2, 3, 4, 5, 6])},
    "test_the_shape_of_the_paper": {"backend": ()},
    "test_the_share_that_is_kept": {"backend": ()},
    "test_two_callers_at_once": {"backend": ()},
    "test_two_runs_are_bit_equal": {"backend": ()},
    "test_bank_takes_any_number_of_rows_without_recompiling": {"backend": ()},
    "test_inductor": {"backend": ()},
    "test_equals_the_plain_function": {
        "name": ("phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn of one expert", "attempt_mix"),
        "transform": ("grad", "jvp", "vmap", "vmap of grad in x alone", "batched gradients"),
    },
    "test_ensemble_of_generators": {"backend": ()},
    "test_traced_models_compute_train_and_are_saved": {"training": (True,), "gradients": (True,)},
}


def is_left_to_a_gpu(request) -> bool:
    test, params = request.node.originalname, request.node.callspec.params
    name = params.get("name")
    if test in TOO_LARGE:
        return True
    if request.param == "triton" and params.get("dtype") == torch.float16:
        return not (test.startswith("test_named") and name in ("odd", "prime", "small"))
    if name in ("paper_down", "paper_up", "many_rows", "wide"):
        return test != "test_named_shapes"
    if request.param == "cuda":
        return False
    return any(params[key] not in kept for key, kept in INTERPRETED.get(test, {}).items() if key in params)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def float64(backend) -> torch.dtype:
    """For tests that compute in it: those of modules to many digits, and gradcheck."""
    reason = why_not(backend, torch.float64)
    if reason is not None:
        pytest.skip(reason)
    return torch.float64


def why_not(backend: str, dtype: torch.dtype | None) -> str | None:
    if backend in ("triton", "cuda") and dtype == torch.float64:
        return "the kernels of a GPU take no float64"
    if backend == "cpu" and dtype == torch.float16:
        return "the CPU kernels take no float16"
    if backend == "triton" and dtype == torch.bfloat16 and backends.interpreting():
        return "bfloat16 products are wrong in Triton's interpreter"
    return None
