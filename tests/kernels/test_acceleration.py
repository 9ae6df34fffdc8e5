"""The factors of other libraries' layers, in every order, and which layers `accelerate` takes. Needs none of them."""

import warnings

import pytest
import torch
from errors import raises, says, warns
from torch import nn

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.acceleration import recognise
from mop_kernels.acceleration.factors import Sizes, cheapest_way, factored_linear, multiply_adds, sizes_of, ways
from mop_kernels.acceleration.runtime_class import Accelerated

SIZES = [
    Sizes(1, 3, 4, 5, 6, None, None),
    Sizes(1, 3, 4, 5, 6, 2, None),
    Sizes(1, 4, 3, 5, 7, None, 2),
    Sizes(1, 3, 4, 5, 6, 1, 3),
    Sizes(3, 2, 4, 5, 6, None, None),
    Sizes(3, 3, 3, 5, 2, None, 2),
    Sizes(2, 2, 2, 3, 5, 1, 2),
    Sizes(1, 1, 1, 7, 3, None, None),
]
FULL = Sizes(1, 8, 8, 160, 160, None, None)
CASES = [(sizes, way) for sizes in SIZES for way in ways(sizes)]


def drawn(sizes, rows=5):
    g = torch.Generator().manual_seed(0)
    s = sizes
    rule = [(s.g_in, s.g_out)] if s.rule_rank is None else [(s.g_in, s.rule_rank), (s.rule_rank, s.g_out)]
    local = [(s.loc_in, s.loc_out)] if s.local_rank is None else [(s.loc_in, s.local_rank), (s.local_rank, s.loc_out)]
    shapes = [(s.terms, *sides) for sides in (*rule, *local)]
    shapes = [(rows, 2, s.g_in * s.loc_in), *shapes, (s.g_out * s.loc_out,)]
    return [torch.randn(shape, generator=g) for shape in shapes], len(rule)


def split(tensors, rules):
    x, *factors, bias = tensors
    rule, local = factors[:rules], factors[rules:]
    return x, rule[0] if len(rule) == 1 else tuple(rule), local[0] if len(local) == 1 else tuple(local), bias


def by_kron(x, rule, local, bias):
    rule = rule[0] @ rule[1] if isinstance(rule, tuple) else rule
    local = local[0] @ local[1] if isinstance(local, tuple) else local
    return x @ sum(torch.kron(r.contiguous(), l.contiguous()) for r, l in zip(rule, local)) + bias


@pytest.mark.parametrize(("sizes", "way"), CASES, ids=[f"{tuple(s)}-{w.rule}-{w.local}" for s, w in CASES])
def test_every_way(sizes, way):
    tensors, rules = drawn(sizes)
    assert sizes_of(*split(tensors, rules)[1:3]) == sizes
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(5, 2, sizes.g_out * sizes.loc_out, generator=g)]

    def results(function, tensors, grads):
        outputs, gradients = testing.value_and_gradients(lambda *t: function(*split(t, rules)), tensors, grads)
        return [*outputs, *gradients]

    found = results(lambda *t: factored_linear(*t, way=way), tensors, grads)
    expected = results(by_kron, tensors, grads)
    truth = results(by_kron, testing.in_float64(tensors), testing.in_float64(grads))
    testing.assert_within_budget(found, expected, truth)
    assert factored_linear(*split(drawn(sizes, rows=0)[0], rules), way=way).shape == (0, 2, len(tensors[-1]))


def test_the_cheapest_way():
    """Counts of LoKr 1280 -> 1280 and of Compacter 768 -> 24 -> 768. A low-rank local saves most of the work."""
    for sizes, rule, local in [
        (FULL, "whole", "whole"),
        (Sizes(1, 16, 16, 80, 80, None, 8), "whole", "first"),
        (Sizes(1, 16, 16, 80, 80, 2, 8), "low_rank", "first"),
        (Sizes(1, 2, 64, 40, 40, None, None), "whole", "whole"),
        (Sizes(4, 4, 4, 192, 6, None, 1), "whole", "first"),
        (Sizes(4, 4, 4, 6, 192, None, 1), "whole", "last"),
    ]:
        assert cheapest_way(sizes) == (rule, local)
        assert multiply_adds(sizes, cheapest_way(sizes)) == min(multiply_adds(sizes, way) for way in ways(sizes))
    dense = 3 * 1280 * 1280
    # forward, x and the factors: 8*1280 by the rule, 160*1280 by the local
    assert multiply_adds(FULL, cheapest_way(FULL)) == 3 * 8 * 1280 + 3 * 160 * 1280
    assert multiply_adds(FULL, cheapest_way(FULL)) < dense / 7


def library_class(module, name, base=nn.Module):
    """Return a class that a library would have under this name."""
    return type(name, (base,), {"__module__": module, "module_type": "linear", "wd": False})


@pytest.fixture
def versions(monkeypatch):
    """The installed versions. Tests change them."""
    found = {"peft": "0.21.2", "lycoris-lora": "4.1.3", "adapters": "1.3.0"}

    def version(distribution):
        if distribution not in found:
            raise recognise.PackageNotFoundError(distribution)
        return found[distribution]

    monkeypatch.setattr(recognise, "version", version)
    return found


PEFT = ("peft.tuners.lokr.layer", "Linear")


def test_every_known_class_is_taken_or_left(versions):
    names = list(recognise.KNOWN)
    classes = [library_class(*name.rsplit(".", 1)) for name in names]
    model = nn.ModuleDict({str(k): c() for k, c in enumerate(classes)} | {"plain": nn.Linear(2, 2)})
    report = mk.accelerate(model)
    taken = [str(k) for k, name in enumerate(names) if recognise.KNOWN[name].mixin is not None]
    assert report.accelerated == tuple(taken)
    assert set(report.left) == {str(k) for k in range(len(names))} - set(taken)
    assert all(isinstance(model[k], Accelerated) and isinstance(model[k], classes[int(k)]) for k in taken)
    assert mk.accelerate(model) == report
    assert mk.restore(model) == report.accelerated
    assert [type(model[str(k)]) for k in range(len(names))] == classes
    assert mk.restore(model) == ()


@pytest.mark.parametrize("found", ["0.22.0", "0.20.0", "0.21.3.dev0", "0.211.0", "0.21rc1", None])
def test_other_versions_are_left(versions, found):
    del versions["peft"]
    if found:
        versions["peft"] = found
    layers = [library_class(*PEFT)() for _ in range(2)]
    with warns(UserWarning, "peft", found or "unknown", "0.21.x") as record:
        report = mk.accelerate(nn.ModuleList(layers))
    assert len(record) == 1
    assert not report.accelerated
    assert list(report.left) == ["0", "1"]
    says(report, "left", found or "unknown", "2 layers")
    assert not any(isinstance(layer, Accelerated) for layer in layers)


@pytest.mark.parametrize("found", ["0.21", "0.21.0", "0.21.2.post1"])
def test_tested_versions_give_no_warning(versions, found):
    versions["peft"] = found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mk.accelerate(library_class(*PEFT)()).accelerated == ("",)


def test_subclasses_and_patched_instances_are_left(versions):
    known = library_class(*PEFT)
    child, patched = library_class("elsewhere", "Child", known)(), known()
    patched.get_delta_weight = lambda name: None
    report = mk.accelerate(nn.ModuleDict({"child": child, "patched": patched}))
    says(report.left["child"], "Child", "peft.tuners.lokr.layer.Linear")
    says(report.left["patched"], "get_delta_weight")
    assert not report.accelerated


def test_a_class_changed_after_acceleration_is_not_restored(versions):
    """fully_shard makes a further subclass."""
    layers = nn.ModuleList(library_class(*PEFT)() for _ in range(2))
    mk.accelerate(layers)
    accelerated = type(layers[1])
    layers[0].__class__ = type("FSDPLinear", (type(layers[0]),), {})
    with raises(RuntimeError, "0", "FSDPLinear"):
        mk.restore(layers)
    assert type(layers[1]) is accelerated


@pytest.mark.parametrize("function", [mk.accelerate, mk.restore])
def test_no_module(function):
    with raises(TypeError, "model", "Module", "dict"):
        function({})


def test_the_report_names_some_layers(versions):
    report = mk.accelerate(nn.ModuleList(library_class(*PEFT)() for _ in range(7)))
    says(report, "7 layers", "0, 1, 2, 3", "3 more")
    says(mk.accelerate(nn.Linear(1, 1)), "accelerated", "0 layers")
