"""Banks whose parts are absent, ask for some gradients, or are smaller than a program: their launches compile."""

import re

import pytest
import torch

from benchmarks.support import compiler, launches
from mop_kernels import backends, testing
from mop_kernels.testing import Bank, Shape
from mop_kernels.triton_kernels import IMPLEMENTATIONS
from mop_kernels.triton_kernels.launch import Launch, asked, forced, recording

pytestmark = pytest.mark.skipif(backends.interpreting(), reason="Triton compiles nothing under TRITON_INTERPRET=1")

# Small maps compile fast; the hidden rows of the second bank are 8 numbers, fewer than a program of 8 rows has threads.
DOWN, UP = Shape(5, 2, 2, 2, 16, 16, 1), Shape(5, 2, 2, 2, 16, 16, 1)
SMALL = Bank(2, 3, DOWN, UP)
NARROW = Bank(1, 1, DOWN._replace(g_out=1, loc_out=8), UP._replace(g_in=1, loc_in=8), maps=1)
LEVEL = ("rule_in", "rule_out", "local", "bias")
ASKED = {
    "all": (LEVEL, True, False),
    "all without bias of some experts": (LEVEL[:3], False, True),
    "rule_in": (("rule_in",), False, False),
    "rule_out": (("rule_out",), True, False),
    "local": (("local",), True, False),
    "bias": (("bias",), True, False),
    "what a full rule asks for": (("rule_in", "local", "bias"), True, False),
}


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """Several cases make the same forward launch, which compiles once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def launches_of_a_bank(bank: Bank, asked: tuple[str, ...], bias: bool, with_experts: bool) -> list[Launch]:
    """Forward and backward; `asked`: the factors of both levels that ask for gradients. x asks with all of them."""
    width = 4 if bias else 3
    with torch.device("meta"), recording() as made:
        x, down, ups = testing.as_mop_arguments(testing.mop_inputs(bank, torch.float32, bias=bias))
        flat = [t for up in ups for t in up[:width]]
        experts = torch.empty(2, dtype=torch.int64) if with_experts else None
        arguments = x, list(down[:width]), flat, len(ups), "gelu", experts
        outputs = IMPLEMENTATIONS["mop_ffn"](*arguments)
        wanted = [asked == LEVEL[:width], *[name in asked for name in LEVEL[:width]] * (1 + len(ups))]
        mask = sum(want << k for k, want in enumerate(wanted))
        IMPLEMENTATIONS["mop_ffn_backward"](outputs, *arguments, mask)
    return made


@pytest.mark.parametrize(("asked", "bias", "with_experts"), ASKED.values(), ids=ASKED)
def test_any_factor_may_ask_for_a_gradient_or_be_absent(asked, bias, with_experts):
    made = launches_of_a_bank(SMALL, asked, bias, with_experts)
    assert len(made) >= 2
    for launch in made:
        compiles(launch)
        assert ("experts must" in ptx_of(launch)) == with_experts
        assert "overflow" not in ptx_of(launch), "Triton's own checks cost much more than the assert"


def compiles(launch: Launch) -> None:
    assert compiler.compile_one(launches.Recorded(launches.of(launch), "a bank"), 90).error == ""


def ptx_of(launch: Launch) -> str:
    """The code that `compiles` has just made; the messages of asserts stand there as numbers."""
    ptx = launch.kernel.warmup(*launch.arguments, grid=launch.grid, enable_fp_fusion=True, **launch.meta).asm["ptx"]
    numbers = [re.findall(r"\d+", data) for data in re.findall(r"\.b8 \w+\[\d+\] = \{(.*?)\}", ptx)]
    return ptx + "".join(bytes(map(int, data)).decode(errors="replace") for data in numbers)


@pytest.mark.parametrize("num_warps", [1, 4, 8])
def test_hidden_rows_of_fewer_numbers_than_threads(num_warps):
    """Triton 3.6 to 3.8 end the whole process where a program would gather from a tile of so few numbers."""
    with asked() as choices:
        launches_of_a_bank(NARROW, (), True, False)
    choice = choices[0]
    with forced(choice, choice.candidates()[0] | {"num_warps": num_warps}):
        launch, *_ = launches_of_a_bank(NARROW, (), True, False)
    down, rows = launch.meta["DOWN"], launch.meta["BLOCK_ROWS"]
    assert rows * down.block_c * down.block_v >= 32 * num_warps
    compiles(launch)
