"""Methods on layers that compute on several devices, as device_map spreads them. Only the first test needs no GPU."""

import mop_t5
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook
from method_cases import SMALL, attach_moved
from t5_oracle import batch, tiny

SIZES = {"d_kv": 6, "num_decoder_layers": 2, "dropout_rate": 0.0, "dtype": torch.float32}
METHODS = [name for name in SMALL if name not in ("fine_tuning", "task_moe")]
IDS = torch.tensor([0, 2, 1, 2])
GPUS = torch.cuda.device_count()
needs_gpu = pytest.mark.skipif(GPUS < 1, reason="needs a GPU")


def spread(model, last):
    """Let the last decoder block and the last norm compute on another device, as accelerate does for a device_map."""
    first = model.shared.weight.device
    for module in (model.decoder.block[1], model.decoder.final_layer_norm):
        attach_execution_device_hook(module.to(last), last)
    for module in (model.encoder, model.decoder):
        attach_execution_device_hook(module, first)
    add_hook_to_module(model, AlignDevicesHook(first, io_same_device=True), append=True)
    attach_execution_device_hook(model.lm_head, last if torch.device(last).type == "meta" else first)
    model.hf_device_map = {"": str(first), "decoder.block.1": str(last), "decoder.final_layer_norm": str(last)}
    return model


def results(model, device):
    """Logits, gradients and texts."""
    inputs = {name: tensor.to(device) for name, tensor in batch().items()}
    model.train()
    out = model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=IDS, skip_logits=True)
    out.loss.backward()
    model.eval()
    with torch.no_grad():
        logits = model(**inputs, scenario_ids=IDS).logits
    del inputs["decoder_input_ids"]
    texts = model.generate(**inputs, scenario_ids=IDS, max_new_tokens=4, num_beams=2)
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad}
    return {"loss": out.loss.detach().cpu(), "logits": logits.cpu(), "texts": texts.cpu(), **gradients}


@pytest.mark.parametrize("name", ["mop", "prefix_tuning", "hyper_prefix"])
def test_prefixes_reach_the_device_of_a_layer(name):
    """The other device is meta, which computes shapes and refuses tensors of the CPU."""
    model = spread(attach_moved(tiny(**SIZES), name), "meta")
    with torch.no_grad():
        assert model.decoder(
            input_ids=batch()["decoder_input_ids"],
            encoder_hidden_states=torch.zeros(4, 6, 24),
            use_cache=False,
            scenario_ids=IDS,
            mop_additions=model._new_additions(IDS),
        ).last_hidden_state.is_meta


def check(name, model, plain, device):
    ours, theirs = results(attach_moved(model, name), device), results(attach_moved(plain, name), device)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected, atol=1e-4, rtol=1e-3, msg=key)


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_block_on_another_device(name):
    last = "cuda:1" if GPUS > 1 else "cpu"
    check(name, spread(tiny(**SIZES).to("cuda:0"), last), tiny(**SIZES).to("cuda:0"), "cuda:0")


@needs_gpu
@pytest.mark.parametrize("name", ["mop", "prompt_tuning", "bitfit", "attempt"])
def test_blocks_in_the_memory_of_the_host(name, tmp_path):
    tiny(**SIZES).save_pretrained(tmp_path)
    device_map = {"": 0, "decoder.block": "cpu"}
    model = mop_t5.load_backbone(tmp_path, device_map=device_map)
    assert model.decoder.block[0].layer[0].SelfAttention.q.weight.is_meta
    check(name, model, mop_t5.load_backbone(tmp_path, device_map=0), "cuda:0")


@needs_gpu
def test_a_plan_that_fills_the_gpu_first(tmp_path):
    model = tiny(**SIZES)
    model.save_pretrained(tmp_path)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = mop_t5.load_backbone(tmp_path, device_map="auto", max_memory={0: size * 3 // 4, "cpu": "1GiB"})
    assert len(set(loaded.hf_device_map.values())) == 2
    inputs = batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits.cpu(), model(**inputs).logits, atol=1e-4, rtol=1e-3)
