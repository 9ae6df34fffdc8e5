"""How each library puts a prefix or a prompt on a T5, for prefixes.py.

A library is imported only in its own functions, because PEFT and adapters need different releases of transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

ROWS = 3  # of every prefix and prompt
SIZES: dict[str, Any] = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 32, "num_layers": 2}
SIZES |= {"dropout_rate": 0.0, "initializer_factor": 2.0, "decoder_start_token_id": 0}


def backbone() -> Any:
    """Return a T5 with random weights, large enough that each attention matters, always the same."""
    torch.manual_seed(0)
    config = T5Config(**SIZES)
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    return model


@dataclass
class Library:
    """A way to tune a T5.

    Args:
        package: distribution.
        build: puts it on a backbone. Returns the model that is called and generates, and the number of its trainable
            parameters, as the library reports it.
        save: writes the model to a folder.
        load: puts a saved one on a fresh backbone, and returns the model.
    """

    package: str
    build: Callable[[Any], tuple[Any, int]]
    save: Callable[[Any, Path], Any]
    load: Callable[[Any, Path], Any]


def peft(kind: str) -> Library:
    """Return PEFT's prefix-tuning or prompt-tuning."""
    from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    config_class = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}[kind]

    def build(model: Any) -> tuple[Any, int]:
        tuned = get_peft_model(model, config_class(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=ROWS))
        return tuned, tuned.get_nb_trainable_parameters()[0]

    return Library("peft", build, lambda tuned, folder: tuned.save_pretrained(folder), PeftModel.from_pretrained)


def adapters(kind: str) -> Library:
    """Return the prefix-tuning or prompt-tuning of adapters."""
    import adapters as library
    from adapters import PrefixTuningConfig, PromptTuningConfig

    def build(model: Any) -> tuple[Any, int]:
        library.init(model)
        is_prefix = kind == "prefix"
        config = PrefixTuningConfig(prefix_length=ROWS) if is_prefix else PromptTuningConfig(prompt_length=ROWS)
        model.add_adapter("tuned", config=config)
        model.train_adapter("tuned")
        return model, model.adapter_summary(as_dict=True)[0]["#param"]

    def load(model: Any, folder: Path) -> Any:
        library.init(model)
        model.load_adapter(str(folder), set_active=True)
        return model

    return Library("adapters", build, lambda model, folder: model.save_adapter(str(folder), "tuned"), load)


def mop_t5(kind: str) -> Library:
    """Return the prefix-tuning or prompt-tuning of this project."""
    import mop_t5 as library

    def build(model: Any) -> tuple[Any, int]:
        library.attach(model, f"{kind}_tuning", scenarios=["one"], prefix_length=ROWS)
        return model, library.count_parameters(model).trained

    return Library("mop-kernels", build, library.save, library.load)


LIBRARIES = {"peft": peft, "adapters": adapters, "mop_t5": mop_t5}
