"""The planned memory of a training step, beside the memory that the step takes on a CPU."""

import mop_t5
import pytest
import torch
from errors import raises, says
from measured_memory import batch_of, peak_of
from method_cases import SMALL
from mop_t5.cli.main import main
from mop_t5.methods import method_names
from mop_t5.training import TrainingConfig, train
from mop_t5.training.memory_plan import RESERVE, Devices, PlannedStep, plan_memory
from mop_t5.training.recomputation import recomputed_blocks
from small_training import CORPUS, SCENARIOS, new_tokenizer
from transformers import T5Config

SIZES = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4, "vocab_size": 600}
STEP = {"batch": 4, "source": 96, "target": 32, "num_scenarios": 2}
ONE = Devices.read("1x1GB")


def config(**changes):
    return T5Config(**{**SIZES, "dropout_rate": 0.1, **changes})


def measured(method, fields, dtype, gradient_checkpointing=False, accumulation=1, **changes):
    """Bytes of the tensors that stay, and the bytes that a step takes beside them."""
    model = mop_t5.build_backbone(config(**changes), dtype=dtype)
    batch = batch_of(STEP["batch"], STEP["source"], STEP["target"], SIZES["vocab_size"])
    if method is None:
        model.requires_grad_(True)
    else:
        mop_t5.attach(model, method, scenarios=["a", "b"], **fields)
        batch |= {"scenario_ids": torch.arange(4) % 2, "skip_logits": True}
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step():
        for _ in range(accumulation):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with recomputed_blocks(model, gradient_checkpointing):
        step()
        peak = peak_of(step)
    state = [tensor for values in optimizer.state.values() for tensor in values.values()]
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers(), *state]), peak


FIELDS = {
    name: {key: value for key, value in fields.items() if key not in ("scenarios", "reduction")}
    for name, fields in SMALL.items()
}
CASES = [
    *((name, {}) for name in method_names() if name in SMALL),
    ("mop", {"dtype": "bfloat16", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("mop", {"gradient_checkpointing": True}),
    ("prefix_tuning", {"dtype": "bfloat16"}),
    ("adapter", {"accumulation": 2}),
    (None, {"dtype": "bfloat16"}),
]


@pytest.mark.parametrize(("method", "changes"), CASES)
def test_a_plan_is_near_the_measured_memory(method, changes):
    shape = {name: value for name, value in changes.items() if name in ("feed_forward_proj", "tie_word_embeddings")}
    fields = FIELDS.get(method, {})
    step = {name: value for name, value in changes.items() if name not in shape}
    planned = plan_memory(config(**shape), method, PlannedStep(**STEP | step), ONE, fields)
    stays, peak = measured(method, fields, step.pop("dtype", "float32"), **step, **shape)
    kept = ("weights", "method", "optimizer")
    assert sum(planned.parts[part] for part in kept) == pytest.approx(stays, rel=1e-3)
    assert sum(size for part, size in planned.parts.items() if part not in kept) == pytest.approx(peak, rel=0.1)
    assert planned.total == pytest.approx(stays + peak, rel=0.05)


def test_a_plan_is_near_a_run_of_trainer(tmp_path):
    tokenizer, fields = new_tokenizer(), FIELDS["mop"]
    shape = config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1)
    model = mop_t5.attach(mop_t5.build_backbone(shape), "mop", scenarios=SCENARIOS, **fields)
    settings = TrainingConfig(steps=3, batch_size=8, warmup_steps=0, max_source=40, max_target=16, batching="mixed")
    run = peak_of(lambda: train(model, tokenizer, CORPUS["train"], settings, output=tmp_path, progress=False))
    stays = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    planned = plan_memory(shape, "mop", PlannedStep(batch=8, source=40, target=16), ONE, fields)
    assert planned.total == pytest.approx(stays + run, rel=0.05)


def test_devices():
    assert Devices.read("2x80GB") == Devices(2, 80 * 10**9)
    assert Devices.read("8x24.5GiB") == Devices(8, round(24.5 * 2**30))
    for text in ("80GB", "x80GB", "0x80GB", "2x0GB", "2x80", "2x80gb", "2 x 80GB", "2x-8GB", "2x1e2GB", "2x80GB ", ""):
        with raises(ValueError, "devices", "2x80GB", "GiB", repr(text)):
            Devices.read(text)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batch": 0}, ("batch", "1", "0")),
        ({"dtype": "float16"}, ("dtype", "'float32'", "'bfloat16'", "'float16'")),
        ({"quantise": "3bit"}, ("quantise", "'8bit'", "'3bit'")),
        ({"shard": "zero1"}, ("shard", "'fsdp'", "'zero3'", "'zero1'")),
        ({"shard": "fsdp", "quantise": "4bit"}, ("quantise", "shard", "'4bit'")),
    ],
)
def test_wrong_steps(changes, parts):
    with raises(ValueError, *parts):
        PlannedStep(**changes)


def test_plans_that_cannot_be(tmp_path):
    step = PlannedStep(**STEP)
    with raises(ValueError, "options", "--method"):
        plan_memory(config(), None, step, ONE, {"rank": 2})
    with raises(ValueError, "shard", "1"):
        plan_memory(config(), "bitfit", PlannedStep(**STEP, shard="fsdp"), ONE)
    with raises(ValueError, "quantise", "'8bit'"):
        plan_memory(config(), None, PlannedStep(**STEP, quantise="8bit"), ONE)
    with raises(ValueError, "shard", "'fsdp'", "mop", "'zero2'"):
        plan_memory(config(), "mop", PlannedStep(**STEP, shard="zero2"), Devices(2, 10**9), FIELDS["mop"])
    with raises(ValueError, "nonsense"):
        plan_memory(config(), "mop", step, ONE, {"nonsense": 2})
    with raises(ValueError, "backbone", "'t5-smal'", "'t5-small'"):
        plan_memory("t5-smal", "mop", step, ONE)
    with raises(ValueError, "backbone", "quantised", "--quantise"):
        plan_memory(T5Config(quantization_config={"quant_method": "bitsandbytes"}), "mop", step, ONE, FIELDS["mop"])
    with raises((OSError, ValueError), str(tmp_path)):
        plan_memory(str(tmp_path), "mop", step, ONE)


def test_several_devices():
    """The weights are shared and gathered by block. A method stays whole; its gradients are averaged in buckets."""

    def parts(method, count, **changes):
        return plan_memory(config(), method, PlannedStep(**STEP | changes), Devices(count, 10**9)).parts

    alone, both = parts("prefix_tuning", 1), parts("prefix_tuning", 2)
    assert both == {**alone, "gradients": alone["gradients"] + alone["method"]}
    sharded = parts("prefix_tuning", 4, shard="fsdp")
    gathered = sharded.pop("gathered weights")
    assert sharded == {**both, "weights": -(-alone["weights"] // 4)}
    block = 4 * (8 * 128 * 128 + 2 * 128 * 512 + 3 * 128)  # of the decoder, without a table of positions
    table = 4 * 32 * 4
    assert gathered == 4 * (600 * 128 + 2 * 128) + 3 * (block + table)

    alone, sharded = parts(None, 1), parts(None, 4, shard="fsdp")
    assert sharded["weights"] == -(-alone["weights"] // 4)
    assert sharded["optimizer"] == -(-alone["optimizer"] // 4)
    assert sharded["gradients"] == -(-alone["gradients"] // 4) + min(alone["gradients"], gathered)
    assert sharded["activations"] == alone["activations"]

    zero2, zero3 = (parts(None, 4, shard=shard, dtype="bfloat16") for shard in ("zero2", "zero3"))
    alone = parts(None, 1, dtype="bfloat16")
    assert zero2["weights"] == alone["weights"]
    assert zero3["weights"] == zero2["gradients"] == zero3["gradients"] == -(-alone["weights"] // 4)
    # a copy of the weights in float32 beside the two moments
    assert zero2["optimizer"] == zero3["optimizer"] == -(-(alone["optimizer"] + 2 * alone["weights"]) // 4)
    assert zero2["buffers of DeepSpeed"] == zero3["buffers of DeepSpeed"] == 2 * 500_000_000
    assert zero3["gathered weights"] == alone["weights"]


def test_quantised_weights():
    """Of 4-bit weights a half byte stays; torchao keeps the weights in the dtype of the inputs for backward."""

    def parts(quantise):
        return plan_memory(config(), "bitfit", PlannedStep(**STEP, quantise=quantise), ONE).parts

    plain = parts("no")
    maps = 2 * (4 + 8) * 128 * 128 + 4 * 128 * 512  # q, k, v, o and wi of two blocks per stack
    assert plain["weights"] - parts("4bit")["weights"] == 4 * maps - maps // 2 - 4 * maps // 64 - 64 * 28
    assert parts("4bit")["activations"] == plain["activations"]
    assert parts("8bit")["activations"] > plain["activations"]
    assert parts("int8")["activations"] > plain["activations"] + 3 * maps


def test_the_command(tmp_path, capsys):
    config().save_pretrained(tmp_path)
    common = ["plan", "--backbone", str(tmp_path), "--method", "mop", "--options.d_mid", "16", "--batch", "2"]
    common += ["--source", "50", "--target", "20", "--options.terms_down=4", "--options.terms_up=4"]
    assert main([*common, "--devices", "1x1GB"]) == 0
    printed = capsys.readouterr().out
    planned = plan_memory(
        config(),
        "mop",
        PlannedStep(batch=2, source=50, target=20),
        Devices(1, 10**9),
        {"d_mid": 16, "terms_down": 4, "terms_up": 4},
    )
    says(printed, "total", f"{planned.total / 1e9:.3f}", f"{planned.total / 1e9:.1%}")
    for part in planned.parts:
        says(printed, part)
    says(printed, "fits", f"{RESERVE:.0%}")
    assert main([*common, "--devices", "1x0.005GiB"]) == 3
    says(capsys.readouterr().out, "not fit")
    assert main([*common, "--devices", "80GB"]) == 1
    says(capsys.readouterr().err, "mop-t5 plan", "devices", "'80GB'")


def test_a_published_size():
    """T5-small has 60,506,624 parameters; nothing of it is loaded."""
    planned = plan_memory("t5-small", "prompt_tuning", PlannedStep(batch=1, source=16, target=4), ONE)
    assert planned.parts["weights"] == 4 * 60_506_624
