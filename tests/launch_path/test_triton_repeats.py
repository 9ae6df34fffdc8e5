"""Calls from notes do what calls as written do, whatever changes between them (triton_kernels/replay.py)."""

import contextlib
import threading

import pytest
import torch
from launches import (
    HALF,
    SMALL,
    TINY,
    Memory,
    bank,
    call_often,
    check_call,
    check_launches,
    implementation,
    low_rank,
    programs,
    prompts,
)
from layouts import LAYOUTS, transposed, unaligned
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.triton_kernels import notes
from mop_kernels.triton_kernels.launch import asked, forced, multiprocessors, recording


@pytest.fixture
def weight(stub):
    """phm_weight, which has one launch, and its arguments. It has been called often."""
    args = tuple(testing.linear_inputs(TINY, torch.float32)[1:3])
    call_often("phm_weight", args)
    stub.taken()
    return args


def test_other_sizes_and_dtypes(stub):
    for shape in (TINY, TINY._replace(loc_in=5), TINY._replace(terms=3), TINY):
        for dtype in (torch.float32, HALF):
            check_call(stub, "phm_weight", tuple(testing.linear_inputs(shape, dtype)[1:3]))
    assert len(programs("phm_weight")) == 6


def test_pointers_that_16_does_not_divide(stub, weight):
    """Triton compiles another kernel for them, which reads less at once."""
    rule, local = weight
    for args in ((unaligned(rule), local), (rule, unaligned(local)), weight):
        check_call(stub, "phm_weight", args)
    kernels = {id(program.plan[0].step.kernel) for program in programs("phm_weight")}
    assert len(kernels) == 3


def test_strides_of_gradients(stub, weight):
    """They are read as they come; a gradient whose numbers are all one is no memory of its own."""
    grad = torch.ones(TINY.d_in, TINY.d_out)
    for layout in ("contiguous", "transposed", "sliced", "expanded", "scalar"):
        check_call(stub, "phm_weight_backward", (LAYOUTS[layout](grad), *weight, 3))
    assert len(programs("phm_weight_backward")) == 5


def test_factors_of_any_strides_are_copied(stub, weight):
    rule, local = weight
    results = call_often("phm_weight", (transposed(rule), local))
    assert results.is_contiguous()
    for launch in stub.taken():
        pointers = [parameter.integer for parameter in launch.parameters]
        assert local.data_ptr() in pointers
        assert rule.data_ptr() not in pointers


def test_tf32(stub):
    args = bank(SMALL).forward
    check_call(stub, "mop_ffn", args)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        check_call(stub, "mop_ffn", args)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    check_call(stub, "mop_ffn", args)
    ieee, tf32 = programs("mop_ffn")
    assert ieee.plan[0].step.kernel is not tf32.plan[0].step.kernel


def test_a_float_may_differ_from_call_to_call(stub):
    """An annealed temperature is a number for the kernel, neither other notes nor another kernel."""
    case = prompts("odd", masked=False)
    outputs = implementation("attempt_mix")(*case.forward)
    for temperature in (0.5, 3.0, 2.0, 0.125):
        forward = (*case.forward[:-1], temperature)
        backward = case._replace(forward=forward).backward(outputs)
        check_call(stub, "attempt_mix", forward, calls=3)
        check_call(stub, "attempt_mix_backward", backward)
    assert len(programs("attempt_mix")) == len(programs("attempt_mix_backward")) == 1


def test_one_tensor_in_two_places(stub):
    """Both outputs of a sum have the same gradient. Later calls may give different ones."""
    case = bank(SMALL)
    outputs = call_often("mop_ffn", case.forward)
    grads, *rest = case.backward(outputs)
    for given in ([grads[0]] * 2, grads, [grads[1]] * 2):
        check_call(stub, "mop_ffn_backward", (given, *rest))
    assert len(programs("mop_ffn_backward")) == 1


@pytest.mark.parametrize("name", ["mop_ffn", "phm_linear", "lowrank_phm_linear", "attempt_mix"])
def test_no_rows_no_launch(name, stub):
    """Nothing to compute: of an empty grid no launch is made."""
    none = TINY._replace(rows=0)
    args = {
        "mop_ffn": lambda: bank(SMALL._replace(down=none, up=none)).forward,
        "phm_linear": lambda: tuple(testing.linear_inputs(none, torch.float32)),
        "lowrank_phm_linear": lambda: tuple(testing.lowrank_inputs(none, torch.float32)),
        "attempt_mix": lambda: prompts("no_example", masked=True).forward,
    }[name]()
    call_often(name, args)
    assert all(0 not in launch.grid for launch in stub.taken())
    if name != "attempt_mix":  # which looks for the maxima of the prompts
        call_often(name, args)
        assert not stub.taken()


def test_the_current_stream(stub, weight):
    for stream in (0x70, 0x90, 0):
        stub.streams[0] = stream
        call_often("phm_weight", weight)
        assert {launch.stream for launch in stub.taken()} == {stream}


class OnSecondDevice(Tensor):
    """A CPU tensor that says it lies on the second GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", 1))


@pytest.fixture
def two_devices(stub, monkeypatch):
    """What torch would know of two GPUs."""

    @contextlib.contextmanager
    def device(wanted):
        before, stub.device = stub.device, wanted.index
        yield
        stub.device = before

    properties = type("Properties", (), {"multi_processor_count": 132, "name": "Stub"})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: stub.device)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Stub")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    multiprocessors.cache_clear()
    yield
    multiprocessors.cache_clear()


def test_tensors_on_another_device(stub, two_devices):
    """The launch is made there, on that device's stream, by a kernel that was loaded there; then all is as before."""
    stub.streams[1] = 0x11
    x, *rest = bank(SMALL).forward
    for rows, place in ((x.as_subclass(OnSecondDevice), 1), (x, 0), (x.as_subclass(OnSecondDevice), 1)):
        call_often("mop_ffn", (rows, *rest))
        launches = stub.taken()
        assert len(launches) == 3
        for launch in launches:
            assert (launch.context_device, launch.function_device) == (place, place)
            assert launch.stream == stub.streams[place]
        assert stub.device == 0
    assert len(programs("mop_ffn")) == 2


def test_hooks_of_profilers(stub, weight):
    """Each launch is announced, with its kernel's name, also where it was made from notes before."""
    import triton

    heard = []
    enter, leave = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook

    def entered(metadata):
        heard.append(metadata.get()["name"])

    def left(metadata):
        heard.append("end")

    enter.add(entered)
    leave.add(left)
    try:
        call_often("phm_weight", weight, times=2)
    finally:
        enter.remove(entered)
        leave.remove(left)
    assert heard == ["mix_kernel", "end"] * 2
    call_often("phm_weight", weight)
    assert len(heard) == 4
    assert len(stub.taken()) == 5


def test_forced_configurations(stub, weight):
    """Tuning tries configurations on calls whose sizes have been noted."""
    with asked() as choices:
        implementation("phm_weight")(*weight)
    own = stub.taken()[-1]
    config = choices[0].candidates()[0]
    with forced(choices[0], config | {"num_warps": 2}):
        implementation("phm_weight")(*weight)
    assert stub.taken()[-1].threads == 64
    implementation("phm_weight")(*weight)
    assert stub.taken()[-1].threads == own.threads == 32 * config["num_warps"]


def test_a_launcher_that_is_not_known(stub, monkeypatch):
    """A later Triton may launch otherwise: then every call is made as it is written."""
    args = low_rank(torch.float32, bias=True, local_first=True).forward
    monkeypatch.setattr(notes, "is_known", lambda kernel: False)
    for _ in range(4):
        check_call(stub, "lowrank_phm_linear", args, calls=1)
    assert programs("lowrank_phm_linear") == ["not repeatable"]


def test_threads(stub):
    """Each call of each thread launches on its own tensors."""
    cases = [
        tuple(testing.linear_inputs(TINY._replace(terms=terms), torch.float32, seed=terms)[1:3]) for terms in (1, 2, 3)
    ]
    expected = set()

    def work(args):
        for _ in range(40):
            weight = implementation("phm_weight")(*args)
            expected.add((args[1].data_ptr(), args[0].data_ptr(), weight.data_ptr()))

    threads = [threading.Thread(target=work, args=(args,)) for args in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launches = stub.taken()
    assert len(launches) == 120
    found = set()
    for launch in launches:
        local, rule, _, weight = (parameter.integer for parameter in launch.parameters[:4])  # no bias: the result's
        found.add((local, rule, weight))
    assert found == expected


def test_the_public_call_and_its_gradients(stub):
    """Through checks, autograd and the choice of the backend, with all gradients."""
    tensors = testing.mop_inputs(SMALL, torch.float32)
    x, down, ups = testing.as_mop_arguments([t.requires_grad_() for t in tensors])
    down, ups = mk.LowRankPHM(*down), [mk.LowRankPHM(*up) for up in ups]

    def run():
        outputs = mk.mop_ffn(x, down, ups, backend="triton")
        grads = [torch.ones_like(y) for y in outputs]
        return [*outputs, *grads, *torch.autograd.grad(outputs, tensors, grads)]

    with recording() as launches:
        recorded = run()
    for _ in range(4):
        real = run()
        check_launches(launches, stub.taken(), Memory([*tensors, *recorded], [*tensors, *real]))


def test_torch_sees_the_op(stub, weight):
    """Eager calls leave out torch's dispatcher, unless a profiler or a mode looks at it."""
    name = "mop_kernels::phm_weight_triton"

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    for _ in range(3):
        with Watching():
            mk.phm_weight(*weight, backend="triton")
    with torch.profiler.profile() as profile:
        mk.phm_weight(*weight, backend="triton")
    assert seen.count(name) == 3
    assert name in {event.key for event in profile.key_averages()}
    assert len(stub.taken()) == 4


@pytest.mark.parametrize(
    "make",
    [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype)],
    ids=["minus its memory", "zeros without memory"],
)
def test_tensors_that_are_not_their_memory(make, stub, weight):
    """PyTorch puts off a negation and the zeros of a derivative; kernels must receive them done."""
    rule, local = weight
    lazy = make(rule)
    for _ in range(3):
        mk.phm_weight(lazy, local, backend="triton")
    for launch in stub.taken():
        pointers = [parameter.integer for parameter in launch.parameters[:4]]
        assert rule.data_ptr() not in pointers
        assert 0 not in pointers
        assert local.data_ptr() in pointers
    assert lazy.is_neg() or lazy._is_zerotensor()


def test_tensors_that_outlived_a_transform(stub, weight):
    """What torch.func wrapped is unwrapped, also without autograd."""
    rule, local = weight
    escaped = []
    torch.func.grad(lambda t: (escaped.append(t), t.sum())[1])(rule)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            mk.phm_weight(escaped[0], local, backend="triton")
        (launch,) = stub.taken()
        assert rule.data_ptr() in [parameter.integer for parameter in launch.parameters]


def test_tensors_without_memory_launch_nothing(stub, weight):
    """On the device "meta" only shapes are computed, also after calls on tensors of the same sizes."""
    on_meta = [t.to("meta") for t in weight]
    for _ in range(3):
        assert mk.phm_weight(*on_meta, backend="triton").is_meta
        assert implementation("phm_weight")(*on_meta).is_meta
    assert not stub.taken()
    with pytest.raises(ValueError, match="device"):
        mk.phm_weight(weight[0], on_meta[1], backend="triton")


def test_a_trace_before_dispatch_sees_the_op(stub, weight):
    def function(rule, local):
        return mk.phm_weight(rule, local, backend="triton")

    graph = make_fx(function, pre_dispatch=True)(*weight).graph
    assert "mop_kernels.phm_weight_triton.default" in {str(node.target) for node in graph.nodes}


def test_memory_is_given_up_where_the_function_gives_it_up(stub, monkeypatch):
    """Backward of phm_linear builds W, which nobody needs once it was multiplied by the gradient."""
    x, rule, local, _ = testing.linear_inputs(TINY._replace(rows=64), torch.float32)
    args = torch.ones(64, TINY.d_out), x, rule, local, 0b111
    call_often("phm_linear_backward", args)
    (program,) = programs("phm_linear_backward")
    made = range(4, program.count)
    kept = {slot for slot in made if slot not in {k for planned in program.plan for k in planned.freed}}
    assert set(program.results) <= kept
    assert any(planned.freed for planned in program.plan)
    allocated = [buffer[0] for planned in program.plan for buffer in planned.needed] + [b[0] for b in program.unused]
    assert sorted(allocated) == sorted(buffer[0] for buffer in program.buffers)
    live = []
    run = notes.Called.run

    def counted(step, tensors, addresses):
        run(step, tensors, addresses)
        live.append(sum(tensors[slot] is not tensors[0] for slot in made))

    monkeypatch.setattr(notes.Called, "run", counted)
    implementation("phm_linear_backward")(*args)
    assert live
    assert max(live) < len(made)
