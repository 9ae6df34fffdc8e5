"""The settings of a run: the content of run.json."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mop_t5.attachment.method import MethodConfig
from mop_t5.backbone.settings import LoadingSettings
from mop_t5.data.dataset_objects import place_of
from mop_t5.evaluation import Rouge
from mop_t5.training.config import TrainingConfig


def settings_of(
    training: TrainingConfig,
    corpus: str,
    backbone: str,
    method: str | None,
    config: MethodConfig | None,
    scenarios: list[str] | None,
    seeds: list[int] | None,
    rouge: Rouge,
    stream: str | None = None,
    loading: LoadingSettings | None = None,
) -> dict[str, Any]:
    """Return the content of run.json.

    Args:
        training: The settings of the training.
        corpus: The corpus folder, or the name of a dataset on the hub.
        backbone: The folder of the backbone, or its name on the model hub.
        method: The name of the method. None for all weights.
        config: The configuration of the method, with its defaults filled in.
        scenarios: The scenarios of the training rows. None for all.
        seeds: The seeds of a run of several seeds.
        rouge: ROUGE of the validations.
        stream: The folder of the training rows. None for rows in memory.
        loading: How the backbone is loaded.
    """
    options = {} if config is None else config.to_dict()
    return {
        "corpus": place_of(corpus),
        "backbone": str(Path(backbone).resolve()) if Path(backbone).is_dir() else backbone,
        "method": method,
        "options": {name: value for name, value in options.items() if name != "scenarios"},
        "scenarios": scenarios,
        "stream": None if stream is None else str(Path(stream).resolve()),
        **asdict(rouge),
        "seeds": seeds,
        **asdict(training),
        **asdict(LoadingSettings() if loading is None else loading),
    }
