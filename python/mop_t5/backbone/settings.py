"""How a command loads a backbone. run.json keeps the settings, so that a trained run is loaded in the same way."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.backbone.load import as_dtype, load_backbone
from mop_t5.backbone.placement import check_placement
from mop_t5.backbone.quantisation import SCHEMES, quantisation_config
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.checks import check_choice, check_types
from mop_t5.files import StrPath

_IMPLEMENTATIONS = (None, "sdpa", "eager")


@dataclass(frozen=True)
class LoadingSettings:
    """Settings of loading a backbone. An access token is no setting: the hub's own login keeps it.

    Args:
        dtype: data type of the weights, such as "bfloat16". The data type of the checkpoint if not given.
        quantise: "8bit" and "4bit" by bitsandbytes, "int8" and "int4" by torchao: quantise the frozen weights of the
            backbone while they are loaded. "no": keep them. The method stays in floating point.
        device_map: where the layers lie. "auto" fills the GPUs, then the memory of the host, then the disk; a mapping
            names the device of each module. The whole backbone is on one device if not given.
        max_memory: largest memory per device for device_map "auto", such as {"0": "20GiB", "cpu": "60GiB"}.
        offload_folder: folder for the weights that device_map puts on the disk. A checkpoint in safetensors needs none.
        attn_implementation: "sdpa" or "eager". The choice of transformers if not given.
        revision: branch, tag or commit of a backbone on the model hub.
        subfolder: folder of the backbone's files within its folder or repository.
    """

    dtype: str | None = None
    quantise: str = "no"
    device_map: str | dict[str, int | str] | None = None
    max_memory: dict[str, int | str] | None = None
    offload_folder: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    subfolder: str | None = None

    def __post_init__(self):
        check_types(self)
        check_choice("quantise", self.quantise, SCHEMES)
        check_choice("attn_implementation", self.attn_implementation, _IMPLEMENTATIONS)
        as_dtype(self.dtype)

    @classmethod
    def of_run(cls, settings: Mapping[str, Any], *, moved: bool = False) -> "LoadingSettings":
        """Return the settings in run.json.

        Args:
            settings: The content of run.json.
            moved: The backbone has another place now, which has no revision and no subfolder.
        """
        found = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        return cls(**found | ({"revision": None, "subfolder": None} if moved else {}))

    def check_machine(self) -> None:
        """Check that this machine has the devices and packages.

        Raises:
            ValueError: A device is missing, or a setting is of no use without another setting.
            ImportError: The package of the quantisation is missing.
        """
        check_placement(self.device_map, self.max_memory, self.offload_folder)
        quantisation_config(self.quantise, as_dtype(self.dtype))

    def load(self, path_or_hub_name: StrPath) -> PreTrainedModel:
        """Return the backbone. Errors: see load_backbone."""
        arguments = asdict(self) | {"subfolder": self.subfolder or ""}
        scheme = quantisation_config(arguments.pop("quantise"), as_dtype(self.dtype))
        return load_backbone(path_or_hub_name, quantization_config=scheme, **arguments)

    def tokenizer(self, path_or_hub_name: StrPath) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the backbone. Errors: see load_tokenizer."""
        return load_tokenizer(path_or_hub_name, revision=self.revision, subfolder=self.subfolder or "")
