"""The planned memory of quantised backbones, beside bitsandbytes and torchao on a CPU."""

from importlib.util import find_spec

import pytest

if not (find_spec("bitsandbytes") and find_spec("torchao")):
    pytest.skip("bitsandbytes and torchao are not installed: make test-extras", allow_module_level=True)

import mop_t5
import torch
from measured_memory import batch_of, peak_of
from mop_t5.training.memory_plan import Devices, PlannedStep, plan_memory
from transformers import BitsAndBytesConfig, T5Config, T5ForConditionalGeneration, TorchAoConfig

STEP = {"batch": 4, "source": 96, "target": 32}
SIZES = {"d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 2, "num_heads": 8, "vocab_size": 600}


def settings_of(scheme, dtype):
    if scheme == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if scheme == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return TorchAoConfig(Int8WeightOnlyConfig() if scheme == "int8" else IntxWeightOnlyConfig(torch.int4, PerGroup(32)))


def tensors_of(weight):
    """The tensors that a weight is made of."""
    if getattr(weight, "SCB", None) is not None:
        return [weight.data, weight.SCB]
    if (state := getattr(weight, "quant_state", None)) is not None:
        return [weight.data, state.absmax, state.code]
    if not hasattr(weight, "__tensor_flatten__") or type(weight) is torch.nn.Parameter:
        return [weight]
    return [part for name in weight.__tensor_flatten__()[0] for part in tensors_of(getattr(weight, name))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["8bit", "4bit", "int8", "int4"])
def test_a_quantised_backbone(scheme, dtype, tmp_path):
    config = T5Config(**SIZES, dropout_rate=0.1, decoder_start_token_id=0)
    mop_t5.build_backbone(config).save_pretrained(tmp_path)
    step = PlannedStep(**STEP, quantise=scheme, dtype=str(dtype).removeprefix("torch."), num_scenarios=1)
    planned = plan_memory(config, "prefix_tuning", step, Devices(1, 10**9), {"prefix_length": 4}).parts

    quantised = settings_of(scheme, dtype)
    model = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype, quantization_config=quantised)
    model.requires_grad_(False)
    assert planned["weights"] == sum(part.nbytes for weight in model.parameters() for part in tensors_of(weight))
    mop_t5.attach(model, "prefix_tuning", scenarios=["a"], prefix_length=4).train()
    batch = batch_of(*STEP.values(), SIZES["vocab_size"]) | {"scenario_ids": torch.zeros(4, dtype=torch.int64)}

    def one_step():
        model(**batch, skip_logits=True).loss.backward()
        model.zero_grad()

    one_step()
    kept = ("weights", "method", "optimizer")
    assert sum(size for part, size in planned.items() if part not in kept) == pytest.approx(peak_of(one_step), rel=0.15)
