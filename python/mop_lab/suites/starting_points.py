"""Prompts and adapters trained on source tasks, and the systems that start from them."""

from dataclasses import dataclass
from typing import Any

from mop_t5.checks import check_int
from mop_t5.storage import prompt_library


@dataclass(frozen=True)
class StartingPoints:
    """The prompts and adapters that were trained on source tasks. With them, systems that start from them are rows.

    Args:
        library: folder of a prompt library. Its source prompts have one length.
        source_prompts: names of its prompts, in the order of the attention weights. The default is all prompts, in the
            order of their names.
        general_prompt: folder of a saved prompt_tuning with one prompt for all source tasks. It adds SPoT-g.
        prior: folder of a saved attempt. The attention of the new tasks starts from its attention. It adds ATTEMPT
            without the prior, and with the prior frozen.
        first_steps: steps in which SPoT-t trains the first version of a prompt. It then compares this version with the
            source prompts.
    """

    library: str
    source_prompts: list[str] | None = None
    general_prompt: str | None = None
    prior: str | None = None
    first_steps: int = 100

    def __post_init__(self):
        check_int("first_steps", self.first_steps, 1)
        known = prompt_library.names(self.library)
        chosen = tuple(known if self.source_prompts is None else self.source_prompts)
        if not chosen:
            raise ValueError(f"library {self.library!r} holds no prompt. Train some by `mop-t5 attempt sources`.")
        if unknown := sorted(set(chosen) - set(known)):
            raise ValueError(
                f"source_prompts names {', '.join(unknown)}; library {self.library!r} holds {', '.join(known)}."
            )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The names of the source prompts."""
        return tuple(self.source_prompts or prompt_library.names(self.library))

    @property
    def length(self) -> int:
        """The number of rows of a source prompt."""
        return len(prompt_library.read(self.library, self.prompts[0]).prompt)


@dataclass(frozen=True)
class FirstVersion:
    """A field of a system whose value is the folder of an adapter that is trained first.

    Args:
        fields: Fields of the same method, which is trained on the same examples.
        steps: Optimizer steps of this training.
    """

    fields: dict[str, Any]
    steps: int


def systems_from(starts: StartingPoints) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the systems that start from `starts`: method -> label -> the fields to attach with."""
    own: dict[str, Any] = {"prefix_length": starts.length, "per_scenario": True}
    plain = {**own, "init": "vocabulary"}
    like: dict[str, Any] = {**own, "init": "spot", "init_library": starts.library, "init_prompts": starts.prompts}
    like["init_target"] = FirstVersion(plain, starts.first_steps)
    prompts: dict[str, dict[str, Any]] = {
        "frozen backbone": {"prefix_length": 0},
        "PT": plain,
        "SPoT-t": like,
        "SPoT-t (mixed)": {**like, "init_top": 0, "init_similarity": "sum_token_cosine"},
    }
    if starts.general_prompt is not None:
        prompts["SPoT-g"] = {**own, "init": "file", "init_file": starts.general_prompt}

    sources = {"library": starts.library, "source_prompts": starts.prompts, "prompt_length": starts.length}
    learnt = {**sources, "prior": starts.prior}
    without_library = {"library": None, "source_prompts": (), "untrained_sources": len(starts.prompts)}
    mixtures: dict[str, dict[str, Any]] = {
        "ATTEMPT": learnt,
        "ATTEMPT (token)": {**learnt, "attention": "token"},
        "ATTEMPT (constant)": {**sources, "attention": "constant"},
        "ATTEMPT w/o attention": {**sources, "attention": "none"},
        "ATTEMPT w/o target": {**learnt, "use_target": False},
        "ATTEMPT single source": {**learnt, "source_prompts": starts.prompts[:1]},
        "ATTEMPT untrained sources": {**learnt, **without_library},
    }
    if starts.prior is not None:
        mixtures["ATTEMPT w/o prior"] = sources
        mixtures["ATTEMPT frozen prior"] = {**learnt, "train_attention": False}
    return {"prompt_tuning": prompts, "attempt": mixtures}
