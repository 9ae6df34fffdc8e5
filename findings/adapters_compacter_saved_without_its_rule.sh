#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0. Compacter shares one phm_rule between all of its layers by default.
# Guessed: save_adapter and load_adapter give the trained adapter back. Seen: the file has no phm_rule. load_adapter fills
# in random numbers and does not warn, so the loaded adapter computes something else in each process. With
# shared_phm_rule=False the rules are in the file, and the loaded adapter is the saved one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==4.57.6 adapters==1.3.0
FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import os

import adapters
import torch
from adapters import CompacterConfig
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
ids = torch.arange(2, 12)[None]


def model():
    torch.manual_seed(0)
    made = T5ForConditionalGeneration(T5Config(**sizes, initializer_factor=3.0)).eval()
    adapters.init(made)
    return made


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=ids, decoder_input_ids=ids).logits


print("adapters", adapters.__version__)
plain = logits(model())
for shared in (True, False):
    trained = model()
    config = CompacterConfig(phm_dim=4, reduction_factor=4, shared_phm_rule=shared, factorized_phm_rule=False)
    trained.add_adapter("a", config=config)
    trained.train_adapter("a")
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:  # stands for a training
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    saved = f"{os.environ['FOLDER']}/adapter-{shared}"
    trained.save_adapter(saved, "a")
    keys = torch.load(f"{saved}/pytorch_adapter.bin")
    loaded = model()
    torch.manual_seed(1)
    loaded.load_adapter(saved, set_active=True)
    error = ((logits(loaded) - logits(trained)).abs().max() / (plain - logits(trained)).abs().max()).item()
    rules = sum("phm_rule" in key for key in keys)
    print(f"shared_phm_rule={shared}: {rules} rules in the file, error after loading over the adapter's effect {error:.3f}")
    assert (rules == 0) == shared and (error > 0.05) == shared, "changed"
PYTHON
