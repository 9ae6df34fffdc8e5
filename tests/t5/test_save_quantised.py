"""Saving and loading on backbones whose weights are tensor subclasses, buffers, views or shards."""

import enum
import itertools
from dataclasses import dataclass

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.identity import hash_weights, weights_of
from t5_oracle import batch, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import return_and_correct_aliasing

IDS = torch.tensor([0, 2, 1, 2])
FIELDS = {"scenarios": ["taxi", "ticket", "food"], "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4}


class Rounded(torch.Tensor):
    """An int8 matrix and one scale per row, as a quantiser keeps a weight; `options` is its metadata."""

    @staticmethod
    def __new__(cls, data, scale, options):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype, device=data.device)

    def __init__(self, data, scale, options):
        self.data_int8, self.scale, self.options = data, scale, options

    def __tensor_flatten__(self):
        return ["data_int8", "scale"], self.options

    @classmethod
    def __tensor_unflatten__(cls, inner, options, size, stride):
        return cls(inner["data_int8"], inner["scale"], options)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, bias = (*args, None)[:3]
            return F.linear(x, weight.data_int8.to(weight.dtype) * weight.scale, bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if function not in (aten.detach.default, aten.clone.default):
            raise NotImplementedError(f"Rounded has no {function}")
        own = args[0]
        made = cls(function(own.data_int8), function(own.scale), own.options)
        return return_and_correct_aliasing(function, args, kwargs or {}, made)


class Opaque(Rounded):
    """A Rounded without __tensor_flatten__."""

    __tensor_flatten__ = property()


class Nested(Rounded):
    """A Rounded whose scale is a Rounded too."""


class Dequantised(Rounded):
    """A Rounded that says its values."""

    def dequantize(self):
        return self.data_int8.to(self.dtype) * self.scale


def rounded(weight, options, kind=Rounded):
    scale = weight.abs().amax(-1, keepdim=True) / 127
    data = (weight / scale).round().to(torch.int8)
    if kind is Nested:
        return Nested(data, rounded(scale, options), options)
    return kind(data, scale, options)


def quantised(kind=Rounded, options=None, **overrides):
    model = tiny(**overrides)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name != "lm_head":
            module.weight = nn.Parameter(rounded(module.weight.detach(), options, kind), requires_grad=False)
    return model


def attached(model):
    torch.manual_seed(11)
    return mop_t5.attach(model, "mop", **FIELDS)


def logits(model):
    with torch.no_grad():
        return model(**batch(), scenario_ids=IDS).logits


def hash_of(*tensors):
    return hash_weights({f"weight{k}": tensor for k, tensor in enumerate(tensors)})


def test_round_trip_on_a_quantised_backbone(tmp_path):
    model = attached(quantised())
    assert not torch.equal(logits(model), logits(attached(tiny()))), "the backbone is not quantised"
    mop_t5.save(model, tmp_path)
    torch.manual_seed(99)
    loaded = mop_t5.load(quantised(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def one_other_value():
    model = quantised()
    model.decoder.block[1].layer[0].SelfAttention.v.weight.data_int8[3, 4] += 1
    return model


def one_other_scale():
    model = quantised()
    model.decoder.block[1].layer[0].SelfAttention.v.weight.scale[3] *= 2
    return model


@pytest.mark.parametrize("other", [one_other_value, one_other_scale, tiny, lambda: quantised(seed=5)])
def test_another_backbone_is_refused(other, tmp_path):
    mop_t5.save(attached(quantised()), tmp_path)
    with raises(ValueError, "another backbone", "same shape", "other weights"):
        mop_t5.load(other(), tmp_path)


def test_a_subclass_that_cannot_be_read_is_refused_before_the_training():
    model = quantised(Opaque)
    before = dict(vars(model))
    with raises(ValueError, "encoder.block.0", "backbone", "class Opaque", "Rounded", "aten.", "plain tensors"):
        attached(model)
    assert vars(model) == before
    assert not mop_t5.is_attached(model)
    model = attached(tiny())
    weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
    model.encoder.block[0].layer[0].SelfAttention.q.weight = nn.Parameter(rounded(weight.detach(), None, Opaque), False)
    with raises(ValueError, "class Opaque", "values"):
        mop_t5.save(model, "unused")


class Mode(enum.Enum):
    SYMMETRIC = 1
    ASYMMETRIC = 2


@dataclass
class Options:
    mode: Mode
    block: tuple[int, ...] = (1, 8)
    added_later: bool = False


def test_metadata_is_part_of_the_hash():
    weight = torch.arange(24.0).reshape(4, 6) + 1
    different = [
        {"block": [1, 6]},
        {"block": [1, 3]},
        {"target": torch.int8},
        {"target": torch.uint8},
        {"mode": Mode.SYMMETRIC},
        {"mode": Options(Mode.SYMMETRIC)},
        {"mode": Options(Mode.ASYMMETRIC)},
        {"mode": Options(Mode.ASYMMETRIC, block=(1, 4))},
        {"mode": "symmetric"},
    ]
    hashes = [hash_of(rounded(weight, options)) for options in different]
    assert len(set(hashes)) == len(different)
    equal = [
        {"block": [1, 6]},
        {"block": (1, 6), "kernel": None},
        {"added_later": False, "block": torch.Size([1, 6])},
    ]
    assert {hash_of(rounded(weight, options)) for options in equal} == {hashes[0]}
    assert hash_of(rounded(weight, {}, Nested)) != hash_of(rounded(weight, {}))


@pytest.mark.parametrize("kind", [Rounded, Nested])
def test_one_hash_wherever_and_in_whichever_dtype_it_is(kind):
    weight = torch.tensor([[127.0, -3.0], [4.0, 127.0]])  # scales 1, exact in every dtype
    hashes = set()
    for dtype, address in itertools.product((torch.float32, torch.float64, torch.bfloat16), range(2)):
        options = {"dtype": dtype, "device": torch.device("cpu", address), "kernel": object()}
        hashes.add(hash_of(rounded(weight.to(dtype), options, kind)))
    assert len(hashes) == 1


def test_the_hash_of_plain_weights_never_changes():
    """Adapters from an older mop_t5 must load."""
    values, packed = torch.arange(9000.0).reshape(90, 100) / 7, torch.arange(300).to(torch.uint8).reshape(30, 10)
    weights = {"a.weight": values, "b": torch.tensor([1.5, -2.0]), "u": packed}
    expected = "734775f01fd36f138f8c01e72b39a3142a1e6f4fbd2906e02c42920a971801c3"
    assert hash_weights(weights) == expected
    assert hash_weights(weights | {"a.weight": values.T.contiguous().T}) == expected
    assert hash_weights(weights | {"a.weight": nn.Parameter(values), "u": nn.Parameter(packed, False)}) == expected


def test_an_expanded_weight():
    row = torch.arange(5.0)
    assert hash_of(row.expand(7, 5)) == hash_of(row.repeat(7, 1)) != hash_of(row.expand(8, 5))


class PackedLinear(nn.Module):
    """A dense layer whose weight is a buffer of bytes, as GPTQ and AWQ keep it."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("packed", (weight * 100 + 128).clamp(0, 255).to(torch.uint8))
        self.register_buffer("workspace", torch.zeros(3), persistent=False)

    def forward(self, x):
        return F.linear(x, (self.packed.to(x.dtype) - 128) / 100)


def test_weights_in_buffers(tmp_path):
    def packed():
        model = tiny()
        attention = model.decoder.block[0].layer[0].SelfAttention
        attention.v = PackedLinear(attention.v.weight.detach())
        return model, attention.v

    (model, _), (same, layer), (other, other_layer) = packed(), packed(), packed()
    mop_t5.save(attached(model), tmp_path)
    layer.workspace.add_(1)
    assert torch.equal(logits(mop_t5.load(same, tmp_path)), logits(model))
    other_layer.packed[3, 4] ^= 1
    with raises(ValueError, "same shape", "other weights"):
        mop_t5.load(other, tmp_path)
    assert weights_of(tiny()).keys() == dict(tiny().named_parameters()).keys()


def test_a_fake_backbone_can_be_attached():
    mode, model = FakeTensorMode(allow_non_fake_inputs=True), tiny()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter.detach()), False))
    with mode:
        assert mop_t5.is_attached(attached(model))


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("fake", rank=0, world_size=2)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def test_distributed_tensors(one_process):
    from torch.distributed.tensor import DTensor, Replicate, Shard

    weight = torch.arange(24.0).reshape(4, 6)
    replicated = DTensor.from_local(weight, one_process, [Replicate()], run_check=False)
    assert hash_of(replicated) == hash_of(weight)
    model = tiny()
    norm = model.decoder.final_layer_norm
    norm.weight = nn.Parameter(DTensor.from_local(norm.weight.detach(), one_process, [Shard(0)], run_check=False))
    with raises(ValueError, "final_layer_norm.weight", "sharded", "2 processes"):
        attached(model)


def test_torchao(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")

    def backbone(seed=0):
        model = tiny(dtype=torch.float32, seed=seed)
        chosen = lambda module, name: type(module) is nn.Linear and name != "lm_head"  # noqa: E731
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), chosen)
        return model

    model = attached(backbone())
    mop_t5.save(model, tmp_path)
    assert torch.equal(logits(mop_t5.load(backbone(), tmp_path)), logits(model))
    for other in (backbone(seed=5), tiny(dtype=torch.float32)):
        with raises(ValueError, "same shape", "other weights"):
            mop_t5.load(other, tmp_path)


def dynamically_quantised(model):
    """As torch.ao.quantization: packed weights, which are neither parameters nor buffers."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


@pytest.mark.parametrize("call", ["attach", "load"])
def test_layers_that_pass_no_gradients_are_refused(call, tmp_path):
    """The method would train on nothing, without a word."""
    mop_t5.save(attached(tiny(dtype=torch.float32)), tmp_path)
    model = dynamically_quantised(tiny(dtype=torch.float32))
    with raises(ValueError, "SelfAttention.q", "gradients"):
        attached(model) if call == "attach" else mop_t5.load(model, tmp_path)
    assert not hasattr(model, "mop")


def test_methods_that_need_the_weights_themselves():
    """Experts are copies of blocks, in floating point; what is quantised cannot be trained and saved."""
    model, inputs = quantised(Dequantised), batch()
    expected = model(**inputs).logits
    mop_t5.attach(model, "task_moe", scenarios=FIELDS["scenarios"], noise=0.0)
    torch.testing.assert_close(model(**inputs, scenario_ids=IDS).logits, expected, atol=1e-11, rtol=0)
    with raises(ValueError, "copies", "blocks", "class Rounded"):
        mop_t5.attach(quantised(), "task_moe", scenarios=FIELDS["scenarios"])
    plain = quantised()
    with raises(ValueError, "'fine_tuning'", "backbone", "quantised (Rounded)"):
        mop_t5.attach(plain, "fine_tuning")
    assert not hasattr(plain, "mop")


def test_a_model_is_quantised_after_training(tmp_path):
    mop_t5.save(attached(tiny(dtype=torch.float32)), tmp_path)
    model = mop_t5.load(tiny(dtype=torch.float32), tmp_path)
    quantised_whole = dynamically_quantised(model)
    error = (logits(quantised_whole) - logits(model)).abs().max()
    assert 0 < error < 0.2 * logits(model).abs().max()


def test_a_quantised_method_is_not_saved(tmp_path):
    model = dynamically_quantised(attached(tiny(dtype=torch.float32)))
    assert torch.isfinite(logits(model)).all()
    with raises(ValueError, "Save", "before", "quantised"):
        mop_t5.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "mop_adapter.safetensors").exists()
