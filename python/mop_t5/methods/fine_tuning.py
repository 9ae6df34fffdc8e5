"""Fine-tuning of all the backbone's weights, the baseline of MOP's Table 2.

Without templates it is "MTL-vanilla". With templates it is "MTL": every dialogue begins with a sentence that names its
scenario. The paper reports lower scores for MOP than for models that are tuned on one scenario each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mop_t5.attachment.method import Method, MethodConfig
from mop_t5.methods import register

# the paper prints its templates in English: "The conversation comes from the ... business."
_DEFAULT_TEMPLATE = "这段对话来自{scenario}业务。"
_CHINESE_NAMES = {"taxi": "打车", "ticket": "票务", "e-commerce": "电商", "take-out": "外卖", "food": "餐饮"}
_PLACE = "{scenario}"


@dataclass(frozen=True)
class FineTuningConfig(MethodConfig):
    """Fields of the method "fine_tuning".

    Args:
        scenarios: names of the scenarios. They share all weights.
        templates: text in front of a dialogue, in training and in generation. None: no text. A text with "{scenario}"
            in it: the name of the scenario replaces it. {scenario: text}: one text per scenario. "default": a Chinese
            sentence, in which the paper's five scenarios have Chinese names.
    """

    templates: str | dict[str, str] | None = None

    def __post_init__(self):
        super().__post_init__()
        templates = self.templates
        if isinstance(templates, Mapping):
            self._set("templates", dict(templates))
            if missing := [name for name in self.scenarios if name not in templates]:
                raise ValueError(
                    f"templates must have a text for each scenario; got none for {', '.join(missing)}. Write one, or "
                    f"use one text for all, with {_PLACE!r} in it."
                )
        elif isinstance(templates, str) and templates != "default" and _PLACE not in templates:
            raise ValueError(
                f"templates must be 'default' or have {_PLACE!r} in it, or it would not depend on the scenario; got "
                f"{templates!r}."
            )

    def with_scenarios(self, scenarios: Sequence[str]) -> "FineTuningConfig":
        """Return the same config for other scenarios. A new scenario gets the default sentence."""
        templates = self.templates
        if isinstance(templates, dict):  # a new scenario has no text yet
            templates = {name: templates.get(name, _DEFAULT_TEMPLATE.replace(_PLACE, name)) for name in scenarios}
        return replace(self, scenarios=tuple(scenarios), templates=templates)


@register
class FineTuning(Method[FineTuningConfig]):
    """A method without own parameters: all parameters of the backbone are trained, saved, and restored by detach."""

    name = "fine_tuning"
    Config = FineTuningConfig

    def trains_backbone(self, parameter_name: str) -> bool:
        """Return True."""
        return True

    def source_text(self, dialogue: str, scenario: str) -> str:
        """Return the dialogue behind the sentence of its scenario."""
        templates = self.config.templates
        if templates is None:
            return dialogue
        if isinstance(templates, str):
            if templates == "default":
                templates, scenario = _DEFAULT_TEMPLATE, _CHINESE_NAMES.get(scenario.casefold(), scenario)
            return templates.replace(_PLACE, scenario) + dialogue
        if scenario not in templates:
            raise ValueError(f"templates have no text for scenario {scenario!r}; they have {', '.join(templates)}.")
        return templates[scenario] + dialogue
