"""A T5-pegasus as it is published, but small: the vocabulary, the config, and the variables by their names."""

import json

import numpy as np

WORDS = """司机 绕路 要求 退款 打车 小时 客服 用户 我 用 元 元的 不 客 气 恤 ， 。 ： （ ） a b s t it ' , . ! - : ( ) #
 10 12 24 30 50 iphone hello world un ##aff ##able"""
TOKENS = ["[PAD]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split()]


def write_vocabulary(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return folder / "vocab.txt"


def write_bert4keras_config(folder, config):
    fields = {
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": config.d_model,
        "initializer_range": 0.02,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "attention_head_size": config.d_kv,
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "attention_scale": False,
        "is_dropout": True,
    }
    (folder / "config.json").write_text(json.dumps(fields))


def variables(model):
    """The variables of the TensorFlow checkpoint that holds this model's weights."""

    def kernel(module):  # (in, out)
        return np.ascontiguousarray(module.weight.detach().numpy().T)

    found = {"shared/embedding": model.shared.weight.detach().numpy(), "decoder/logits/kernel": kernel(model.lm_head)}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        found[f"{name}/rms_norm/scale"] = stack.final_layer_norm.weight.detach().numpy()
        table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads)
        found[f"{name}/block_000/layer_000/SelfAttention/relative_attention_bias"] = table.detach().numpy().T.copy()
        for i, block in enumerate(stack.block):
            attentions = [("SelfAttention", block.layer[0].SelfAttention)]
            if name == "decoder":
                attentions.append(("EncDecAttention", block.layer[1].EncDecAttention))
            for j, (kind, attention) in enumerate(attentions):
                for letter in "qkvo":
                    found[f"{name}/block_{i:03d}/layer_{j:03d}/{kind}/{letter}"] = kernel(getattr(attention, letter))
            last = len(attentions)
            for matrix in ("wi_0", "wi_1", "wo"):
                network = f"{name}/block_{i:03d}/layer_{last:03d}/DenseReluDense/{matrix}/kernel"
                found[network] = kernel(getattr(block.layer[last].DenseReluDense, matrix))
            for j, layer in enumerate(block.layer):
                found[f"{name}/block_{i:03d}/layer_{j:03d}/rms_norm/scale"] = layer.layer_norm.weight.detach().numpy()
    return found
