#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0 on torch 2.13.0, CPU. Seq2SeqTrainer with predict_with_generate on a model whose
# generation_config.json asks for two texts per input (num_return_sequences), as fine-tuned summarisers have it.
# compute_metrics gets two predictions per row of labels, without an error. If they are zipped with the labels, as usual,
# texts are scored against the references of other inputs from the second text on.
# Guessed: one prediction per row, or an error. Seen: 8 predictions and 4 rows of labels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
FOLDER="$folder/output" TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import os

import torch
import transformers
from transformers import (
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

torch.manual_seed(0)
sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2}
model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0))
rows = [{"input_ids": [5 + 3 * i, 6, 7 + i, 1], "labels": [8 + i, 9, 1]} for i in range(4)]
settings = {"output_dir": os.environ["FOLDER"], "use_cpu": True, "report_to": "none", "disable_tqdm": True}
arguments = Seq2SeqTrainingArguments(**settings, per_device_eval_batch_size=2, predict_with_generate=True)
seen = {}


def collate(batch):
    return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}


def predictions_of(texts_per_input):
    model.generation_config = GenerationConfig(
        decoder_start_token_id=0, pad_token_id=0, num_beams=4, max_length=6, num_return_sequences=texts_per_input
    )
    metrics = lambda prediction: seen.update(prediction=prediction) or {}
    trainer = Seq2SeqTrainer(model, arguments, data_collator=collate, eval_dataset=rows, compute_metrics=metrics)
    trainer.evaluate()
    return seen["prediction"].predictions, seen["prediction"].label_ids


print("transformers", transformers.__version__)
one, labels = predictions_of(1)
two, _ = predictions_of(2)
print("predictions", one.shape, "and with num_return_sequences=2", two.shape, "labels", labels.shape)
assert len(one) == len(labels) == 4 and len(two) == 8, "changed"
assert (two[::2] == one).all() and not (two[:4] == one).all(), "changed"
PYTHON
