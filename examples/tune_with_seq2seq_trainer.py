"""Tune a frozen T5 with MOP in transformers' Seq2SeqTrainer, without changes to the trainer.

    python examples/tune_with_seq2seq_trainer.py

Trainer sees an ordinary T5. Batches have one more tensor, `scenario_ids`, and checkpoints contain the method only.
Accumulated gradients equal the gradients of the joint batch.

The backbone here is tiny and has random weights, so the example runs anywhere in seconds. For real work, replace
the tokenizer and the model by load_tokenizer("folder-or-hub-name") and load_backbone("folder-or-hub-name"), and read
your own corpus with read_corpus("DIR").
"""

import tempfile

import mop_t5
import torch
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import (
    Collator,
    EncodedExamples,
    TemperatureBatchSampler,
    scenario_ids_of,
    scenarios_of,
    synthetic_corpus,
)
from mop_t5.evaluation import AVERAGE, Scorer
from mop_t5.training import hold_absent_experts
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config

torch.manual_seed(0)
corpus = synthetic_corpus(seed=0, general=1, train=200, valid=10, test=5)
tokenizer = train_tokenizer((text for row in corpus["train"] for text in (row.dialogue, row.summary)), vocab_size=900)

backbone = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
model = mop_t5.build_backbone(backbone)
scenarios = scenarios_of(corpus["train"])
mop_t5.attach(model, "mop", scenarios=scenarios, prefix_length=10, d_mid=32, terms_down=8, terms_up=8)


class MixingTrainer(Seq2SeqTrainer):
    """Draw one scenario per batch, with a probability proportional to size^(1/2). A plain trainer shuffles all rows."""

    def get_train_dataloader(self):
        """Return the batches of one epoch, in the order of the sampler."""
        batches = self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size
        ids = scenario_ids_of(corpus["train"], scenarios)
        sampler = TemperatureBatchSampler(ids, batch_size=4, temperature=2.0, num_batches=batches)
        return self.accelerator.prepare(
            DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)
        )


def rouge(prediction):
    """Return the mean ROUGE over scenarios of the generated tokens."""
    # Several processes fill their last batches with repeated rows. Cut these rows off.
    tokens = torch.as_tensor(prediction.predictions)[: len(corpus["valid"])]
    tokens = tokens.masked_fill(tokens < 0, tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return Scorer()(corpus["valid"], texts)[AVERAGE]._asdict()


optimizer = torch.optim.AdamW(model.mop.parameters(), lr=5e-3)
hold_absent_experts(optimizer, model.mop.expert_parameters())  # no decay and no momentum for experts without rows
with tempfile.TemporaryDirectory() as folder:
    trainer = MixingTrainer(
        model,
        Seq2SeqTrainingArguments(
            output_dir=folder,
            max_steps=12,
            gradient_accumulation_steps=4,
            lr_scheduler_type="linear",
            warmup_steps=2,
            eval_strategy="steps",
            eval_steps=6,
            save_steps=6,
            logging_steps=3,
            load_best_model_at_end=True,
            metric_for_best_model="rougeL",
            predict_with_generate=True,
            generation_max_length=16,
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
        ),
        data_collator=Collator(tokenizer.pad_token_id, len(scenarios)),
        train_dataset=EncodedExamples(corpus["train"], tokenizer, scenarios),
        eval_dataset=EncodedExamples(corpus["valid"], tokenizer, scenarios),
        compute_metrics=rouge,
        optimizers=(optimizer, None),
    )
    trainer.train()
    trainer.save_model(folder)  # writes the method only, as mop_t5.save does
    mop_t5.detach(model)
    mop_t5.load(model, folder)
losses = [point["loss"] for point in trainer.state.log_history if "loss" in point]
