"""Frozen T5, mT5 and umT5, tuned by generated prefixes.

    model = mop_t5.load_backbone("path-or-hub-name")
    mop_t5.attach(model, "mop", scenarios=["taxi", "ticket"])
    model(input_ids=..., attention_mask=..., labels=..., scenario_ids=...).loss.backward()
    model.generate(input_ids, scenario_ids=..., num_beams=4)
    mop_t5.save(model, folder); mop_t5.load(fresh_backbone, folder); mop_t5.detach(model)
    mop_t5.push_to_hub(model, "owner/name"); mop_t5.load(fresh_backbone, "owner/name")

torch and transformers are imported on first use.
"""

# ruff: noqa: F401  the imports of the public names are for type checkers

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mop_t5 import methods

if TYPE_CHECKING:  # _WHERE once more: type checkers read imports only
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
        push_to_hub,
        save,
        scenario_ids,
    )
    from mop_t5.operations.export import export, squeeze
    from mop_t5.operations.scenarios import add_scenario, remove_scenario, scenarios, train_only

_WHERE = {
    name: module
    for module, names in {
        "methods": "method_names",
        "backbone.load": "load_backbone",
        "backbone.build": "build_backbone known_backbones",
        "operations.attach": (
            "ParameterCount attach count_parameters detach is_attached load push_to_hub save scenario_ids"
        ),
        "operations.export": "export squeeze",
        "operations.scenarios": "add_scenario remove_scenario scenarios train_only",
    }.items()
    for name in names.split()
}

__all__ = ["methods", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
