"""Frozen T5, mT5 and umT5, tuned by generated prefixes.

    model = mop_t5.load_backbone("path-or-hub-name")
    mop_t5.attach(model, "mop", scenarios=["taxi", "ticket"])
    model(input_ids=..., attention_mask=..., labels=..., scenario_ids=...).loss.backward()
    model.generate(input_ids, scenario_ids=..., num_beams=4)
    mop_t5.save(model, folder); mop_t5.load(fresh_backbone, folder); mop_t5.detach(model)

torch and transformers are imported on first use.
"""

# ruff: noqa: F401  the imports of the public names are for type checkers

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mop_t5 import methods

if TYPE_CHECKING:  # the same names as _WHERE, for type checkers
    from mop_t5.backbone.build import build_backbone, known_backbones
    from mop_t5.backbone.load import load_backbone
    from mop_t5.methods import method_names
    from mop_t5.operations.attach import (
        ParameterCount,
        attach,
        count_parameters,
        detach,
        is_attached,
        load,
        save,
        scenario_ids,
    )
    from mop_t5.operations.export import export
    from mop_t5.operations.scenarios import add_scenario, remove_scenario, scenarios, train_only
    from mop_t5.operations.squeeze import squeeze

_WHERE = {
    "method_names": "methods",
    "load_backbone": "backbone.load",
    "build_backbone": "backbone.build",
    "known_backbones": "backbone.build",
    "attach": "operations.attach",
    "detach": "operations.attach",
    "is_attached": "operations.attach",
    "count_parameters": "operations.attach",
    "ParameterCount": "operations.attach",
    "scenario_ids": "operations.attach",
    "scenarios": "operations.scenarios",
    "add_scenario": "operations.scenarios",
    "remove_scenario": "operations.scenarios",
    "train_only": "operations.scenarios",
    "squeeze": "operations.squeeze",
    "save": "operations.attach",
    "load": "operations.attach",
    "export": "operations.export",
}

__all__ = ["methods", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
