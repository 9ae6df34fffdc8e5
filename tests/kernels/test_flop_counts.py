"""torch's FLOP counter on every operation: figures by hand, and torch's own count of the same products."""

import itertools

import pytest
import torch
from forks import forks_of
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import mop_kernels as mk
from mop_kernels import backends, multiply_adds, ops, testing
from mop_kernels.testing import Bank, PromptShape, Shape

# Distinct primes, so that no two sizes can be mistaken for each other.
SHAPE = Shape(rows=17, terms=2, g_in=3, g_out=5, loc_in=7, loc_out=11, rank=13)
WEIGHT = 2 * (3 * 7) * (5 * 11)  # terms * in * out
DENSE = 17 * (3 * 7) * (5 * 11)  # rows * in * out
STAGES = FIRST, SECOND, THIRD = 2 * 13 * 3 * 7, 2 * 13 * 7 * 11, 2 * 13 * 5 * 11  # of a row


def device(backend: str) -> str:
    """Return where to count: tensors without memory for a GPU's backends, whose stand-ins take seconds per kernel."""
    return "meta" if backend in ("triton", "cuda") else "cpu"


def inputs(make, shape, backend: str) -> list[torch.Tensor]:
    with torch.device(device(backend)):
        return make(shape, torch.float32)


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def counts(function, tensors: list[torch.Tensor], asked: list[int] | None = None) -> tuple[int, int]:
    """Return the FLOPs of the forward pass and of the gradients of `asked` tensors (all by default)."""
    asked = range(len(tensors)) if asked is None else asked
    leaves = [t.detach().requires_grad_(k in asked) for k, t in enumerate(tensors)]
    outputs = []
    forward = counted(lambda: outputs.append(function(*leaves)))
    outputs = outputs[0] if isinstance(outputs[0], (tuple, list)) else outputs
    total = sum(y.sum() for y in outputs)
    return forward, counted(lambda: torch.autograd.grad(total, [leaves[k] for k in asked]))


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_every_op_that_is_defined_has_a_formula(name):
    defined = [b for b in backends.NAMES if hasattr(torch.ops.mop_kernels, f"{name}_{b}")]
    assert {"reference", "triton"} <= set(defined)
    for b in defined:
        assert getattr(torch.ops.mop_kernels, f"{name}_{b}") in flop_registry


def test_phm_weight(backend):
    _, rule, local, _ = inputs(testing.linear_inputs, SHAPE, backend)

    def weight(rule, local):
        return mk.phm_weight(rule, local, backend=backend)

    assert counts(weight, [rule, local]) == (2 * WEIGHT, 2 * (2 * WEIGHT))
    assert counts(weight, [rule, local], [1]) == (2 * WEIGHT, 2 * WEIGHT)
    groups = rule.expand(4, 1, -1, -1, -1), local.expand(3, -1, -1, -1)
    assert counts(weight, groups)[0] == 12 * 2 * WEIGHT


def test_phm_linear(backend):
    def linear(*tensors):
        return mk.phm_linear(*tensors, backend=backend)

    tensors = inputs(testing.linear_inputs, SHAPE, backend)
    # grad_x with W built again; grad_W and one product for each factor; nothing for the bias
    for asked, expected in (
        ([0, 1, 2, 3], 2 * DENSE + 3 * WEIGHT),
        ([0], DENSE + WEIGHT),
        ([1], DENSE + WEIGHT),
        ([1, 2], DENSE + 2 * WEIGHT),
        ([3], 0),
    ):
        assert counts(linear, tensors, asked) == (2 * DENSE, 2 * expected), asked
    x = tensors[0].expand(2, 3, -1, -1)
    assert counts(linear, [x, *tensors[1:]])[0] == 6 * 2 * DENSE


def test_lowrank_phm_linear(backend):
    def linear(*tensors):
        return mk.lowrank_phm_linear(*tensors, backend=backend)

    tensors = inputs(testing.lowrank_inputs, SHAPE, backend)
    forward = 2 * 17 * (FIRST + SECOND + THIRD)
    assert forward == 135_252
    assert counts(linear, tensors) == (forward, 2 * 17 * (3 * FIRST + 3 * SECOND + 2 * THIRD))
    assert counts(linear, tensors, [4]) == (forward, 0)


def three_stages(x, rule_in, rule_out, local):
    t = torch.einsum("nau,iar->niru", x.unflatten(-1, (rule_in.shape[1], -1)), rule_in)
    s = torch.einsum("niru,iuv->nirv", t, local)
    return torch.einsum("nirv,irc->ncv", s, rule_out).flatten(-2)


@pytest.mark.parametrize("asked", [a for k in range(1, 5) for a in itertools.combinations(range(4), k)], ids=str)
def test_stages_are_those_that_torch_counts(asked):
    """Autograd of three products, plus the stages that it saves and that the ops compute again."""
    tensors = testing.lowrank_inputs(SHAPE, torch.float32)[:4]
    forward, backward = counts(three_stages, tensors, list(asked))
    again = {0: 0, 1: 0, 2: FIRST + SECOND, 3: FIRST}
    expected = forward, backward + 2 * 17 * max(again[k] for k in asked)
    assert counts(lambda *t: mk.lowrank_phm_linear(*t, backend="reference"), tensors, list(asked)) == expected


BANK = Bank(layers=3, experts=5, down=Shape(17, 2, 2, 3, 7, 5, 2), up=Shape(17, 3, 5, 2, 3, 4, 1), maps=2)
OF_DOWN = (
    2 * 2 * 2 * 7 + 2 * 2 * 7 * 5 + 2 * 2 * 3 * 5
)  # of a row: width * (g_in loc_in + loc_in loc_out + g_out loc_out)
OF_UP = 3 * 1 * 5 * 3 + 3 * 1 * 3 * 4 + 3 * 1 * 2 * 4


def bank_of(backend, **options):
    def bank(*tensors):
        x, down, ups = testing.as_mop_arguments(tensors)
        return mk.mop_ffn(x, mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups], backend=backend, **options)

    return bank


def test_mop_ffn(backend):
    tensors = inputs(testing.mop_inputs, BANK, backend)
    assert len(tensors) == 1 + 4 + 2 * 4
    rows = 3 * 5 * 17
    forward = 2 * rows * (OF_DOWN + 2 * OF_UP)
    down_backward = 3 * 56 + 3 * 140 + 2 * 60
    up_backward = 3 * 45 + 3 * 36 + 2 * 24
    everything = rows * (OF_DOWN + down_backward + 2 * up_backward)
    bank = bank_of(backend)
    assert (OF_DOWN, OF_UP) == (56 + 140 + 60, 45 + 36 + 24)
    assert counts(bank, tensors) == (forward, 2 * everything)
    # a factor of one up map: hidden rows, then that map's own; rule_out reads both of its stages again
    assert counts(bank, tensors, [6]) == (forward, 2 * rows * (OF_DOWN + 45 + 36 + 24))
    # a bias of the down map: hidden rows, and their gradient of both up maps
    assert counts(bank, tensors, [4]) == (forward, 2 * rows * (OF_DOWN + 2 * OF_UP))
    assert counts(bank, tensors, [8, 12]) == (forward, 0)


@pytest.mark.parametrize("row_gradients", [False, True])
def test_experts_that_are_left_out_count_nothing(backend, row_gradients):
    tensors = inputs(testing.mop_inputs, BANK, backend)
    all_experts = counts(bank_of(backend), tensors)
    bank = bank_of(backend, experts=torch.tensor([4, 1], device=device(backend)), row_gradients=row_gradients)
    forward = counted(lambda: bank(*tensors))
    leaves = [t.requires_grad_() for t in tensors]
    total = sum(y.sum() for y in bank(*leaves))
    assert forward == all_experts[0] // 5 * 2
    assert counted(lambda: torch.autograd.grad(total, leaves)) == all_experts[1] // 5 * 2


@pytest.mark.parametrize(("g_in", "g_out"), [(2, 5), (5, 2)])
def test_a_full_rule_counts_what_auto_takes_for_the_size(g_in, g_out):
    """Both are those of the low-rank form that is computed, whose rank is the smaller side."""
    down = mk.LowRankPHM(torch.randn(1, 1, 3, g_in, g_out), None, torch.randn(1, 1, 3, 2, 2))
    up = mk.LowRankPHM(torch.randn(1, 1, 3, g_out, 4), None, torch.randn(1, 1, 3, 2, 2))
    arguments = {"x": torch.randn(1, 1, 7, g_in * 2), "down": down, "ups": [up]}
    size = multiply_adds.of_call("mop_ffn", arguments)
    least = min(g_out, 4)
    of_down, of_up = 3 * 2 * (g_in * 2 + 4 + g_out * 2), 3 * least * (g_out * 2 + 4 + 4 * 2)
    assert size == 7 * (of_down + of_up)
    assert counted(lambda: mk.mop_ffn(**arguments)) == 2 * size


PROMPTS = PromptShape(batch=2, length=3, sources=5, rows=7, width=11, rank=13, tasks=3)


def test_attempt_mix(backend):
    if backend == "cuda":
        pytest.skip("it has no attempt_mix")
    with torch.device(device(backend)):
        (x, *factors), options = testing.prompt_inputs(PROMPTS, torch.float32)

    def mix(x, source, target, *module):
        mask, ids, temperature = options["mask"], options["task_ids"], options["temperature"]
        return mk.attempt_mix(x, mask, source, target, ids, *module, temperature, backend=backend)

    def of(number: int) -> int:
        return 2 * 2 * 11 * number  # 2 FLOPs * batch * width

    attention = 2 * 13 + 6
    again = attention + 6 * 7
    forward = of(attention + 6 * 7)
    tensors = [x, *factors]
    assert counts(mix, tensors) == (forward, of(again + 5 * 8 + 8 + 6 + 4 * 13))
    assert counts(mix, tensors, [0]) == (forward, of(again + 6 + 2 * 13))
    assert counts(mix, tensors, [1]) == (forward, of(again + 5 * 8))
    assert counts(mix, tensors, [2]) == (forward, of(again + 8))
    assert counts(mix, tensors, [4]) == (forward, of(again + 6 + 13))
    assert counts(mix, tensors, [6]) == (forward, of(again + 6))


def test_a_train_step_by_module(backend):
    """The counter knows the modules of forward and backward; a plain layer beside ours is counted as ever."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.full = mk.PHMLinear(12, 8, terms=4)
            self.low = mk.PHMLinear(8, 20, terms=2, rank=1)
            self.plain = torch.nn.Linear(20, 3)

        def forward(self, x):
            return self.plain(self.low(self.full(x)))

    model = Model().to(device(backend))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 12, device=device(backend))
    with mk.use_backend(backend), FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
        optimiser.step()
    # x needs no gradient: grad_W and one product each for rule and local
    full = 6 * 12 * 8 + (6 * 12 * 8 + 2 * 4 * 12 * 8)
    a, b, c = 2 * 2 * 4, 2 * 4 * 10, 2 * 2 * 10
    low = 6 * (a + b + c) + 6 * (3 * a + 3 * b + 2 * c)
    plain = 3 * 6 * 20 * 3
    found = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    assert found["Model.full"] == 2 * full
    assert found["Model.low"] == 2 * low
    assert found["Model.plain"] == 2 * plain
    assert found["Global"] == found["Model"] == 2 * (full + low + plain)


def test_what_the_reference_computes_inside_is_not_counted_again():
    tensors = testing.lowrank_inputs(SHAPE, torch.float32)
    with FlopCounterMode(display=False) as counter:
        leaves = [t.requires_grad_() for t in tensors]
        mk.lowrank_phm_linear(*leaves, backend="reference").sum().backward()
    names = {str(packet) for packet in counter.get_flop_counts()["Global"]}
    assert names == {f"mop_kernels.lowrank_phm_linear{kind}_reference" for kind in ("", "_backward")}


def test_a_counter_within_a_counter():
    tensors = testing.lowrank_inputs(SHAPE, torch.float32)
    with FlopCounterMode(display=False) as outer:
        mk.lowrank_phm_linear(*tensors)
        with FlopCounterMode(display=False) as inner:
            mk.lowrank_phm_linear(*tensors)
    assert (outer.get_total_flops(), inner.get_total_flops()) == (2 * 135_252, 135_252)


COUNT = """
layer = mop_kernels.PHMLinear(8, 8, terms=2, rank=1)
with FlopCounterMode(display=False) as counter:
    layer(torch.randn(3, 8))
print(counter.get_total_flops())
"""


@pytest.fixture(scope="module")
def forks():
    with forks_of("import torch\n") as forks:
        yield forks


@pytest.mark.parametrize(
    "imports",
    [
        "import sys, mop_kernels\nassert 'torch.utils.flop_counter' not in sys.modules\n"
        "from torch.utils.flop_counter import FlopCounterMode",
        "from torch.utils.flop_counter import FlopCounterMode\nimport mop_kernels",
        "import mop_kernels, torch._inductor.utils\nfrom torch.utils.flop_counter import FlopCounterMode",
    ],
    ids=["before", "after", "by the compiler"],
)
def test_either_may_be_imported_first(imports, forks):
    assert int(forks.run(imports + COUNT)) == 2 * 3 * (2 * 2 * 4 + 2 * 4 * 4 + 2 * 2 * 4)
