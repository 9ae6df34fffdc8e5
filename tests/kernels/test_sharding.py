"""DTensors, FSDP2 and DistributedDataParallel: results and gradients are those of one process, on one and on two.

Each check is a function of a mesh. The first test runs it here, on a mesh of one process; the last runs all of them in
two processes, forks of one that has imported torch. The processes meet in a file, which needs no port.
"""

import copy
import datetime
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from errors import raises
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.testing import Bank, PromptShape, Shape

SHAPE = Shape(rows=5, terms=3, g_in=2, g_out=4, loc_in=3, loc_out=2, rank=2)  # an odd number of rows for two processes
BANK = Bank(layers=2, experts=3, down=Shape(5, 2, 2, 3, 3, 2, 2), up=Shape(5, 3, 3, 2, 2, 3, 1), maps=2)
PROMPTS = PromptShape(batch=3, length=4, width=5, rows=2, sources=3, tasks=2, rank=2)


def compare(function, tensors: list, placements: list, mesh: DeviceMesh, expected: list):
    """Check function(*tensors) on DTensors of these placements against plain tensors, and its gradients.

    expected: The placements of the results. The gradients have those of their tensors.
    """
    plain = [t.detach().clone().requires_grad_() for t in tensors]
    sharded = [
        distribute_tensor(t.detach(), mesh, p).requires_grad_() for t, p in zip(tensors, placements, strict=True)
    ]
    truths, found = function(*plain), function(*sharded)
    truths, found = ([y] if isinstance(y, torch.Tensor) else list(y) for y in (truths, found))
    grads = [testing.normal(torch.Generator().manual_seed(k), y.dtype, *y.shape) for k, y in enumerate(truths)]
    torch.autograd.backward(truths, grads)
    torch.autograd.backward(found, [distribute_tensor(g, mesh, y.placements) for g, y in zip(grads, found)])
    for y, truth in zip(found, truths, strict=True):
        assert list(y.placements) == list(expected)
        assert y.shape == truth.shape
        assert y.stride() == truth.contiguous().stride()
        torch.testing.assert_close(y.full_tensor(), truth)
    for t, p, truth in zip(sharded, placements, plain, strict=True):
        even = all(not q.is_shard() or t.shape[q.dim] % mesh.size(k) == 0 for k, q in enumerate(p))
        # torch 2.10 replicates a gradient that autograd adds up in uneven shards
        assert list(t.grad.placements) == list(p) or not even
        torch.testing.assert_close(t.grad.full_tensor(), truth.grad)


ALL, FIRST = [Replicate()], [Shard(0)]


def linear_takes_rows_as_they_are_sharded(mesh):
    for operation, inputs in ((mk.phm_linear, testing.linear_inputs), (mk.lowrank_phm_linear, testing.lowrank_inputs)):
        x, *factors = inputs(SHAPE, torch.float64)
        x = x.expand(4, *x.shape) * torch.arange(1.0, 5)[:, None, None]
        for of_factors in (ALL, FIRST):
            of_rest = [of_factors] * len(factors)
            compare(operation, [x, *factors], [[Shard(0)], *of_rest], mesh, [Shard(0)])
            compare(operation, [x, *factors], [[Shard(1)], *of_rest], mesh, [Shard(1)])
            compare(operation, [x, *factors], [[Shard(2)], *of_rest], mesh, ALL)
            compare(operation, [x, *factors], [ALL, *of_rest], mesh, ALL)
        compare(operation, [x[0, :1], *factors], [FIRST, *of_rest], mesh, FIRST)  # the second process has no row
        compare(operation, [x[0, 0], *factors], [FIRST, *of_rest], mesh, ALL)  # a single row, whose dim is not of rows
        y = operation(*(distribute_tensor(t, mesh, ALL) for t in (x, *factors[:-1])))  # without bias
        torch.testing.assert_close(y.to_local(), operation(x, *factors[:-1]))


def two_mesh_dims(mesh):
    """Rows sharded on one of the dims, and on both."""
    tensors = testing.lowrank_inputs(SHAPE, torch.float64)
    tensors[0] = tensors[0].expand(4, -1, -1).clone()
    for shape in ((mesh.size(), 1), (1, mesh.size())):
        two = init_device_mesh("cpu", shape)
        factors = [[Replicate(), Shard(0)]] * 4
        for rows in ([Shard(0), Replicate()], [Shard(0), Shard(1)], [Shard(0), Shard(0)]):
            compare(mk.lowrank_phm_linear, tensors, [rows, *factors], two, rows)


def partial_x_is_summed_first(mesh):
    x, *factors = testing.linear_inputs(SHAPE, torch.float64)
    summand = DTensor.from_local(x, mesh, [Partial()])
    y = mk.phm_linear(summand, *(distribute_tensor(t, mesh, ALL) for t in factors))
    assert list(y.placements) == ALL
    torch.testing.assert_close(y.to_local(), mk.phm_linear(x * mesh.size(), *factors))


def gradients_of_results_may_have_any_placement(mesh):
    tensors = testing.linear_inputs(SHAPE, torch.float64)
    plain = [t.detach().clone().requires_grad_() for t in tensors]
    y = mk.phm_linear(*plain)
    grad = torch.ones_like(y)
    y.backward(grad)
    for placement in (Shard(1), Replicate()):
        sharded = [distribute_tensor(t, mesh, FIRST).requires_grad_() for t in tensors]
        mk.phm_linear(*sharded).backward(distribute_tensor(grad, mesh, [placement]))
        for t, truth in zip(sharded, plain):
            torch.testing.assert_close(t.grad.full_tensor(), truth.grad)


def weight_is_replicated(mesh):
    _, rule, local, _ = testing.linear_inputs(SHAPE, torch.float64)
    compare(mk.phm_weight, [rule, local], [FIRST, FIRST], mesh, ALL)
    groups = [rule.expand(4, 1, -1, -1, -1).clone(), local.expand(2, -1, -1, -1).clone()]
    compare(mk.phm_weight, groups, [FIRST, [Shard(1)]], mesh, ALL)


def bank_of_experts(mesh):
    tensors = testing.mop_inputs(BANK, torch.float64)

    def bank(*tensors, **options):
        x, down, ups = testing.as_mop_arguments(tensors)
        return mk.mop_ffn(x, mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups], **options)

    def some(*tensors):
        return bank(*tensors, experts=torch.tensor([2, 0]), activation="tanh")

    rest = [FIRST] * (len(tensors) - 1)
    compare(bank, tensors, [[Shard(2)], *rest], mesh, [Shard(2)])
    compare(some, tensors, [FIRST, *rest], mesh, ALL)
    sharded = [distribute_tensor(t, mesh, FIRST) for t in tensors]
    with raises(ValueError, "row_gradients", "DTensors"):
        bank(*sharded, row_gradients=True)
    with raises(TypeError, "experts", "DTensor", "full_tensor()"):
        bank(*tensors, experts=distribute_tensor(torch.tensor([2, 0]), mesh, FIRST))
    with raises(TypeError, "DTensor", "ups[1].local", "Tensor"):
        bank(*sharded[:-2], tensors[-2], sharded[-1])


def instance_prompts(mesh):
    inputs, options = testing.prompt_inputs(PROMPTS, torch.float64)
    mask, ids, temperature = options["mask"], options["task_ids"], options["temperature"]

    def mix_with(d_mask, d_ids):
        def mix(x, source, target, *module):
            of_batch = (d_mask, d_ids) if isinstance(x, DTensor) else (mask, ids)
            return mk.attempt_mix(x, of_batch[0], source, target, of_batch[1], *module, temperature)

        return mix

    rest = [FIRST] * (len(inputs) - 1)
    for given in (mask, ids), (distribute_tensor(mask, mesh, ALL), distribute_tensor(ids, mesh, FIRST)):
        compare(mix_with(*given), inputs, [FIRST, *rest], mesh, FIRST)
        compare(mix_with(*given), inputs, [[Shard(1)], *rest], mesh, ALL)


def errors_name_the_argument(mesh):
    x, rule, local, bias = testing.linear_inputs(SHAPE, torch.float32)
    d_rule, d_local = (distribute_tensor(t, mesh, ALL) for t in (rule, local))
    with raises(TypeError, "DTensor", "x is", "Tensor", "torch.distributed"):
        mk.phm_linear(x, d_rule, d_local)
    with raises(TypeError, "bias", "Parameter"):
        mk.phm_linear(distribute_tensor(x, mesh, ALL), d_rule, d_local, torch.nn.Parameter(bias))
    with raises(TypeError, "x", "torch.Tensor", "str"):
        mk.phm_linear("x", d_rule, d_local)
    with raises(ValueError, "local", "(3, 2)"):
        mk.phm_weight(d_rule, d_local[0])
    other = init_device_mesh("cpu", (1, mesh.size()))
    with raises(ValueError, "mesh", "rule", "local"):
        mk.phm_weight(d_rule, distribute_tensor(local, other, [Replicate()] * 2))


def autocast_and_no_grad(mesh):
    tensors = testing.linear_inputs(SHAPE, torch.float32)
    sharded = [distribute_tensor(t, mesh, FIRST).requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        y, truth = mk.phm_linear(*sharded), mk.phm_linear(*tensors)
    assert y.dtype == truth.dtype == torch.bfloat16
    torch.testing.assert_close(y.full_tensor(), truth)
    y.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in sharded)
    with torch.no_grad():
        torch.testing.assert_close(mk.phm_linear(*sharded).full_tensor(), mk.phm_linear(*tensors))


def compiles_without_a_break(mesh):
    tensors = testing.lowrank_inputs(SHAPE, torch.float64)
    compiled = torch.compile(mk.lowrank_phm_linear, backend="aot_eager", fullgraph=True)
    compare(compiled, tensors, [FIRST, *[FIRST] * 4], mesh, FIRST)
    torch.compiler.reset()


class Model(torch.nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.first = mk.PHMLinear(12, 8, rank=rank)
        self.second = mk.PHMLinear(8, 20, terms=2, rank=rank, local_rank=2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def fsdp(mesh):
    """Parameters are DTensors outside forward; a train step there and here, with each process's half of the rows."""
    for rank in (None, 1):
        torch.manual_seed(0)
        plain = Model(rank).double()
        model = copy.deepcopy(plain)
        for module in (model.first, model.second, model):
            fully_shard(module, mesh=mesh)
        optimisers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, model)]
        x = torch.randn(4, 12, dtype=torch.float64)
        for _ in range(2):
            plain(x).sum().backward()
            (model(x.chunk(mesh.size())[mesh.get_local_rank()]).sum() * mesh.size()).backward()
            for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                assert isinstance(q, DTensor)
                torch.testing.assert_close(q.grad.full_tensor(), p.grad)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
        for ours, truth in ((model.first, plain.first), (model.second, plain.second)):
            weight = ours.weight_matrix()
            assert list(weight.placements) == ALL
            torch.testing.assert_close(ours.to_linear().weight, truth.to_linear().weight)
            torch.testing.assert_close(weight.full_tensor(), truth.weight_matrix())
            ours.weight_matrix().square().sum().backward()
            truth.weight_matrix().square().sum().backward()
            for p, q in zip(truth.parameters(), ours.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None)
                if p.grad is not None:
                    torch.testing.assert_close(q.grad.full_tensor(), p.grad)
        model.eval(), plain.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x))


def bank_layer_under_fsdp(mesh):
    torch.manual_seed(0)
    plain = mk.MOPFeedForward(2, 3, 16, 16, 16, terms_down=4, terms_up=4)
    bank = fully_shard(copy.deepcopy(plain), mesh=mesh)
    torch.testing.assert_close(bank.weight_matrix(1, 2, 0).full_tensor(), plain.weight_matrix(1, 2, 0))


def layer_with_replicated_parameters(mesh):
    """Data parallel by DTensors alone, in training and in evaluation."""
    torch.manual_seed(0)
    plain = mk.PHMLinear(12, 8)
    layer = distribute_module(copy.deepcopy(plain), mesh)
    x = torch.randn(5, 12)
    d_x = distribute_tensor(x, mesh, FIRST)
    layer(d_x).sum().backward()
    plain(x).sum().backward()
    for p, q in zip(plain.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(q.grad.full_tensor(), p.grad)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(d_x).full_tensor(), plain(x))


def data_parallel(mesh):
    """DistributedDataParallel: gradients are the mean over processes. A layer in evaluation follows a broadcast."""
    for rank in (None, 1):
        torch.manual_seed(0)
        plain = Model(rank).double()
        parallel = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        x = torch.randn(4, 12, dtype=torch.float64)
        plain(x).square().mean().backward()
        parallel(x.chunk(mesh.size())[mesh.get_local_rank()]).square().mean().backward()
        for p, q in zip(plain.parameters(), parallel.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad)

    torch.manual_seed(1 + mesh.get_local_rank())
    layer, x = mk.PHMLinear(12, 8).eval(), torch.ones(1, 12)
    with torch.no_grad():
        layer(x)
        for p in layer.parameters():
            dist.broadcast(p, 0)
        found = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, mk.PHMLinear(12, 8)(x).detach())


CHECKS = [
    linear_takes_rows_as_they_are_sharded,
    two_mesh_dims,
    partial_x_is_summed_first,
    gradients_of_results_may_have_any_placement,
    weight_is_replicated,
    bank_of_experts,
    instance_prompts,
    errors_name_the_argument,
    autocast_and_no_grad,
    compiles_without_a_break,
    fsdp,
    bank_layer_under_fsdp,
    layer_with_replicated_parameters,
    data_parallel,
]


def start(rank: int, world: int, file: str) -> DeviceMesh:
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=limit)
    return init_device_mesh("cpu", (world,))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    yield start(0, 1, tmp_path_factory.mktemp("alone") / "store")
    dist.destroy_process_group()


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_one_process(check, mesh):
    check(mesh)


def one_of_two(file: str) -> None:
    torch.set_num_threads(1)
    mesh = start(int(os.environ["RANK"]), 2, file)
    for check in CHECKS:
        check(mesh)
    dist.destroy_process_group()


def test_two_processes(forks_with_t5, tmp_path):
    code = f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sharding import one_of_two
from two_processes import in_two_processes
in_two_processes(lambda: one_of_two({str(tmp_path / "store")!r}))
"""
    forks_with_t5.run(code)
