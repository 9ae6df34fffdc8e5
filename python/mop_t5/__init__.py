"""Frozen T5, mT5 and umT5, tuned by generated prefixes.

    model = mop_t5.load_backbone("path-or-hub-name")
    mop_t5.attach(model, "mop", scenarios=["taxi", "ticket"])
    model(input_ids=..., attention_mask=..., labels=..., scenario_ids=...).loss.backward()
    model.generate(input_ids, scenario_ids=..., num_beams=4)
    mop_t5.save(model, folder); mop_t5.load(fresh_backbone, folder); mop_t5.detach(model)

torch and transformers are imported on first use.
"""

from importlib import import_module

from mop_t5 import methods

_WHERE = {
    "load_backbone": "backbone",
    "build_backbone": "backbone",
    "known_backbones": "backbone",
    "attach": "api",
    "detach": "api",
    "is_attached": "api",
    "count_parameters": "api",
    "ParameterCount": "api",
    "scenario_ids": "api",
    "scenarios": "scenario_changes",
    "add_scenario": "scenario_changes",
    "remove_scenario": "scenario_changes",
    "train_only": "scenario_changes",
    "squeeze": "squeezing",
    "save": "api",
    "load": "api",
    "export": "prefix_export",
}

__all__ = ["methods", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
