"""Prompt-tuning: trained rows in front of the encoder's embeddings (Lester et al. 2021; "MTL-prompt" of MOP, Table 2).

The encoder runs on prompt and text, so the prompt takes part in the relative positions, and the decoder attends to the
encoder's outputs at the prompt, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.method import MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.backbone.tensors import check_floating, read_tensors
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.checks import at_least, check_names, check_some_scenario, errors_at, one_of, within
from mop_t5.methods import register
from mop_t5.methods.parts import spot
from mop_t5.methods.parts.prompt_method import PromptMethod, draw_vocabulary
from mop_t5.methods.parts.saved import read_saved
from mop_t5.storage import prompt_library

_INITS = ("uniform", "uniform_positive", "normal", "vocabulary", "words", "file", "spot")
# field -> the init that needs this field
_NEEDS = {"init_words": "words", "init_file": "file", "init_library": "spot", "init_target": "spot"}


@dataclass(frozen=True)
class PromptTuningConfig(MethodConfig):
    """Fields of the method "prompt_tuning".

    Args:
        scenarios: names of the scenarios. They share the prompt unless per_scenario.
        prefix_length: rows of the prompt. 0 gives the plain model.
        per_scenario: one prompt per scenario.
        init: where the prompt starts:
            "uniform", between -init_scale and init_scale (the paper of prompt-tuning);
            "uniform_positive", between 0 and init_scale (its published code: 0.5, and 0.01 in its bare helper);
            "normal", mean 0 and standard deviation init_scale;
            "vocabulary", embeddings of distinct tokens drawn from the first init_vocabulary ids;
            "words", embeddings of the words in init_words, in turn; a word of several tokens has the mean of theirs;
            "file", the prompt in init_file;
            "spot", the source prompts of init_library that are most similar to init_target (SPoT).
            Prompts of several scenarios are drawn one by one; with "words", "file" and "spot" they may start alike.
        init_scale: see init.
        init_vocabulary: see init. The vocabularies of T5 are in order of frequency, so 5,000 means the most frequent
            5,000.
        init_words: see init. At most prefix_length words; fewer are repeated. The tokenizer in the
            backbone's folder splits the words.
        init_file: see init. The folder of a saved prompt_tuning, or a .safetensors file of one tensor, of shape
            (prefix_length, d_model), for all scenarios alike, or (scenarios, prefix_length, d_model).
        init_library: see init. Folder of a prompt library (mop_t5.storage.prompt_library).
        init_prompts: names of the prompts of init_library to choose from; all if empty.
        init_target: see init. A first version of the prompt, trained for a few epochs; a folder or file as init_file.
        init_similarity: how prompts are compared, one of mop_t5.methods.parts.spot.SIMILARITIES.
        init_top: how many of the most similar prompts are mixed, in proportion to their similarity; 0: all of them.
    """

    prefix_length: Annotated[int, at_least(0)] = 40
    per_scenario: bool = False
    init: Annotated[str, one_of(*_INITS)] = "uniform"
    init_scale: Annotated[float, within(above=0)] = 0.5
    init_vocabulary: Annotated[int, at_least(1)] = 5000
    init_words: tuple[str, ...] = ()
    init_file: str | None = None
    init_library: str | None = None
    init_prompts: tuple[str, ...] = ()
    init_target: str | None = None
    init_similarity: Annotated[str, one_of(*spot.SIMILARITIES)] = "avgpool_cosine"
    init_top: Annotated[int, at_least(0)] = 1

    def __post_init__(self):
        super().__post_init__()
        if self.per_scenario:
            check_some_scenario(self.scenarios)
        if self.init == "vocabulary" and self.init_vocabulary < self.prefix_length:
            raise ValueError(
                f"init_vocabulary must be at least prefix_length = {self.prefix_length}; got {self.init_vocabulary}."
            )
        if len(self.init_words) > self.prefix_length:
            raise ValueError(
                f"init_words must hold at most prefix_length = {self.prefix_length} words; got {len(self.init_words)}."
            )
        check_names("init_prompts", self.init_prompts)
        for name, init in _NEEDS.items():
            if bool(getattr(self, name)) != (self.init == init):
                raise ValueError(f"{name} must be given where init={init!r}, and only there; got init={self.init!r}.")

    def sources(self) -> dict[str, list[Path]]:
        """Return the files and folders that the prompt starts from, by their field."""
        files = {name: [Path(path)] for name in ("init_file", "init_target") if (path := getattr(self, name))}
        if self.init_library is None:
            return files
        library = Path(self.init_library)
        chosen = self.init_prompts or (prompt_library.names(library) if library.is_dir() else ())
        return files | {"init_library": [library / name for name in chosen]}


@register
class PromptTuning(PromptMethod[PromptTuningConfig]):
    """Prompt-tuning. prompt is (prefix_length, d_model), or (scenarios, prefix_length, d_model) with per_scenario."""

    name = "prompt_tuning"
    Config = PromptTuningConfig
    groups: ClassVar = {"prompt": ("prompt",)}

    def __init__(self, config: PromptTuningConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        self.distinguishes_scenarios = config.per_scenario and len(config.scenarios) > 1
        leading = (len(config.scenarios),) if config.per_scenario else ()
        size = (*leading, config.prefix_length, shape.d_model)
        self.prompt = nn.Parameter(torch.empty(size, **where))
        if config.init == "normal":
            nn.init.normal_(self.prompt, std=config.init_scale)
        else:
            low = -config.init_scale if config.init == "uniform" else 0.0
            nn.init.uniform_(self.prompt, low, config.init_scale)

    @torch.no_grad()
    def initialise(self, model: T5) -> None:
        """Set the prompt, unless it starts at random numbers."""
        c = self.config
        if c.init_file:
            self.prompt.copy_(self._stored("init_file", c.init_file, None))
        elif c.init_library and c.init_target:
            self.prompt.copy_(self._rows_of_spot(model, c.init_library, c.init_target))
        elif c.init == "words":
            self.prompt.copy_(self._rows_of_words(model))
        elif c.init == "vocabulary":
            draw_vocabulary(self.prompt, model, "prefix_length", c.init_vocabulary)

    def _rows_of_words(self, model: T5) -> Tensor:
        table, name = model.get_input_embeddings().weight, model.config._name_or_path
        if not name:
            raise ValueError(
                "init='words' needs the backbone's tokenizer, but the backbone was built here and not loaded. Load it "
                "from a folder that holds its tokenizer, or choose another init."
            )
        tokenizer, rows = load_tokenizer(name), []
        for word in self.config.init_words:
            tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
            if not tokens:
                raise ValueError(f"init_words holds {word!r}, of which the tokenizer makes no token. Leave it out.")
            rows.append(table[tokens].to(self.prompt.dtype).mean(0))
        return torch.stack([rows[i % len(rows)] for i in range(self.config.prefix_length)])

    def _rows_of_spot(self, model: T5, library: str, first_version: str) -> Tensor:
        c = self.config
        target = self._stored("init_target", first_version, model)
        names = c.init_prompts or prompt_library.names(library)
        sources = prompt_library.read_for(model, library, names, c.prefix_length)
        targets = target if target.dim() == 3 else target[None]
        made = [spot.start(one, sources, c.init_similarity, c.init_top) for one in targets]
        return torch.stack(made).view_as(target)

    def _stored(self, argument: str, value: str, model: T5 | None) -> Tensor:
        """Return the prompt at the path `value`. A folder must be for this backbone, unless model is None."""
        path = Path(value)
        if path.is_dir():
            _, tensors = read_saved(model, self.name, argument, value)
        elif path.is_file():
            with errors_at(argument):
                tensors = read_tensors(path)
                check_floating(path, tensors, dict.fromkeys(tensors, self.prompt.dtype))
        else:
            raise FileNotFoundError(f"{argument} {str(path)!r} is neither a file nor a folder. Check the path.")
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        shapes = (tuple(self.prompt.shape), tuple(self.prompt.shape[-2:]))
        if len(found) != 1 or not set(found.values()) <= set(shapes):
            expected = " or ".join(map(str, dict.fromkeys(shapes)))
            raise ValueError(
                f"{argument} {str(path)!r} must hold one tensor of shape {expected}; got {found}. Choose "
                "prefix_length and per_scenario as they were there."
            )
        return next(iter(tensors.values()))

    def prepend(self, embeddings: Tensor, mask: Tensor | None, scenario_ids: Tensor | None) -> Tensor:
        """Return the prompt and the embeddings: (batch, prompt + source, d_model)."""
        rows = self.only_trained(self.prompt)
        if self.config.per_scenario:
            # advanced indexing: its backward on a GPU is a sorted sum; the backward of index_select has no fixed order
            rows = rows[0] if scenario_ids is None else rows[scenario_ids]
        rows = rows.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        return torch.cat([rows, embeddings], dim=1)
