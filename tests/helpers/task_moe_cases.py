"""A task_moe whose experts all differ, with every kind of routes."""

import mop_t5
import torch
from t5_oracle import batch, tiny

SCENARIOS = ["taxi", "ticket", "food"]
IDS = torch.tensor([0, 2, 1, 2])
SMALL = {"scenarios": SCENARIOS, "d_task": 8, "hidden": 4}
FIXED = {"one": {"routes": "random_1"}, "two": {"routes": "random_2"}, "all": {"routes": "average"}}
ROUTES = FIXED | {
    "learned": {},
    "hard": {"selection": "straight_through"},
    "instance": {"routes": "instance"},
}


def attached(fields, model=None, spread=0.1):
    """An untrained model whose experts and tables all differ."""
    torch.manual_seed(3)
    model = mop_t5.attach(tiny() if model is None else model, "task_moe", **SMALL | fields)
    with torch.no_grad():
        for parameter in model.mop.experts.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model(**(inputs or batch()), scenario_ids=ids).logits
