"""Gradient accumulation: micro-batches of unequal length and other scenarios give the gradients of the joint batch."""

import mop_t5
import pytest
import torch
from mop_t5.data import Collator
from t5_oracle import tiny
from torch.utils.data import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

SCENARIOS = ["a", "b", "c"]
FIELDS = {"prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4, "scenarios": SCENARIOS}
COLLATE = Collator(0, len(SCENARIOS))


class Rows(Dataset):
    """Eight rows, of lengths that differ and of scenarios that come in pairs."""

    def __init__(self):
        torch.manual_seed(3)
        self.rows = [
            {
                "input_ids": torch.randint(1, 40, (3 + 2 * i,)).tolist(),
                "labels": torch.randint(1, 40, (1 + i * i % 7,)).tolist(),
                "scenario_ids": i // 2 % 3,
            }
            for i in range(8)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


ROWS = Rows()
TOKENS = sum(len(row["labels"]) for row in ROWS)


def attached():
    model = tiny(dropout_rate=0.0)
    torch.manual_seed(0)
    return mop_t5.attach(model, "mop", **FIELDS)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def joint_gradients():
    model = attached()
    model(**COLLATE(ROWS.rows)).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_with_the_token_count_give_the_joint_gradients(size):
    model = attached()
    for start in range(0, 8, size):
        batch = COLLATE(ROWS.rows[start : start + size])
        model(**batch, num_items_in_batch=torch.tensor(TOKENS)).loss.backward()
    expected = joint_gradients()
    assert expected.keys() == gradients(model).keys()
    assert all(name.startswith("mop.") for name in expected)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_without_the_count_the_mean_of_means_is_another_gradient():
    """What the count is for: rows of short summaries would weigh more than rows of long ones."""
    model = attached()
    for start in range(0, 8, 2):
        (model(**COLLATE(ROWS.rows[start : start + 2])).loss / 4).backward()
    expected = joint_gradients()
    assert any((g - expected[n]).norm() > 0.05 * expected[n].norm() for n, g in gradients(model).items())


def test_the_count_in_a_tuple_and_without_labels():
    model = attached().eval()
    batch = COLLATE(ROWS.rows)
    loss, logits, *_ = model(**batch, num_items_in_batch=2 * TOKENS, return_dict=False)
    plain = model(**batch)
    torch.testing.assert_close(loss, plain.loss / 2)
    assert torch.equal(logits, plain.logits)
    decoder = model.prepare_decoder_input_ids_from_labels(batch.pop("labels"))
    assert model(**batch, decoder_input_ids=decoder, num_items_in_batch=5).loss is None


class _Recorder(Seq2SeqTrainer):
    """Keeps the gradients of the first step."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        self.seen = None

        def keep(*_):
            self.seen = {name: g.clone() for name, g in gradients(self.model).items()}

        optimizer.register_step_pre_hook(keep)
        return optimizer


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_seq2seq_trainer_as_it_is(tmp_path, smoothing):
    """Trainer itself: four micro-batches of two rows are one batch of eight, in gradients and logged loss."""
    seen, losses = [], []
    for accumulation in (1, 4):
        model = attached()
        collate = Collator(0, 3, model.prepare_decoder_input_ids_from_labels if smoothing else None)
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            label_smoothing_factor=smoothing,
            max_grad_norm=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = _Recorder(model, arguments, data_collator=collate, train_dataset=ROWS)
        trainer.train()
        seen.append(trainer.seen)
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, gradient in seen[0].items():
        torch.testing.assert_close(gradient, seen[1][name], rtol=1e-5, atol=1e-8)  # label smoothing sums in float32
