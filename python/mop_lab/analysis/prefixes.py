"""Measure where the prefixes of trained methods lie: one PCA of their vectors, and their spread (MOP, Figs. 3 and 4).

A prefix depends on the scenario and not on the text. The points are the rows of the prefix: one key vector and one
value vector, over all heads, per layer, scenario and place. If scenarios share a prefix, one row serves all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mop_t5.attachment.attached_model import is_attached, unwrapped
from mop_t5.evaluation import Table
from mop_t5.operations.run_folder import load_run
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from transformers import PreTrainedModel

from mop_lab.finished_runs import read_system, system_folder

KINDS = ("keys", "values")
_BLOCK = 1024  # rows whose distances are in memory together


@dataclass(frozen=True)
class Prefixes:
    """The prefix vectors of a run for one attention.

    Args:
        label: The label of the run.
        scenarios: The names of the scenarios.
        vectors: "keys" or "values" -> (vectors, heads * d_kv), float64.
        layer: The layer of each vector, (vectors,).
        scenario: The scenario of each vector, (vectors,): an index into `scenarios`, or -1 if all share the vector.
        place: The place of each vector in the prefix, (vectors,).
    """

    label: str
    scenarios: tuple[str, ...]
    vectors: dict[str, np.ndarray]
    layer: np.ndarray
    scenario: np.ndarray
    place: np.ndarray

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, mask of its vectors) of each layer, and of each scenario with rows of its own."""
        for layer in np.unique(self.layer):
            yield f"layer {layer + 1}", self.layer == layer
        for scenario in np.unique(self.scenario[self.scenario >= 0]):
            yield f"scenario {self.scenarios[scenario]}", self.scenario == scenario


@torch.no_grad()
def prefixes_of(model: PreTrainedModel, attention: str, label: str) -> Prefixes:
    """Return the prefixes of all scenarios that the attached method generates for an attention.

    Args:
        model: A model with an attached method.
        attention: One of `places.ATTENTIONS`.
        label: The name of the run, for messages.

    Raises:
        ValueError: The model has no method, or its method generates no prefixes for this attention.
    """
    model = unwrapped(model)
    if not is_attached(model):
        raise ValueError(f"{label} trained all weights of its backbone: it generates no prefixes. Leave it out.")
    method = model.eval().mop
    every = method.additions().prefixes.get(attention, ())
    pairs = [(layer, pair) for layer, pair in enumerate(every) if pair is not None and pair[0].shape[2]]
    if not pairs:
        raise ValueError(
            f"{label} holds the method {method.name!r}, which generates no prefixes for {attention}. Give a run of "
            "mop, prefix_tuning or hyper_prefix."
        )
    vectors: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    where = []
    for layer, pair in pairs:
        rows, _, length, _ = pair[0].shape
        for kind, tensor in zip(KINDS, pair):  # (rows, heads, places, d_kv) -> (rows * places, heads * d_kv)
            vectors[kind].append(tensor.transpose(1, 2).reshape(rows * length, -1).double().cpu().numpy())
        owner = np.arange(rows) if rows > 1 else np.array([0 if len(method.scenarios) == 1 else -1])
        where.append(np.stack([np.full(rows * length, layer), owner.repeat(length), np.tile(np.arange(length), rows)]))
    together = {kind: np.concatenate(arrays) for kind, arrays in vectors.items()}
    return Prefixes(label, tuple(method.scenarios), together, *np.concatenate(where, axis=1))


def read_prefixes(runs: Sequence[str | Path], attention: str, backbone: str | None = None) -> list[Prefixes]:
    """Return the prefixes of run folders.

    A run has the label that its suite gives it, otherwise the name of its folder. If runs share a name, their seeds
    stand behind the label.

    Args:
        runs: The run folders.
        attention: One of `places.ATTENTIONS`.
        backbone: The folder of the backbone, if it has moved since the runs.

    Raises:
        FileNotFoundError: A run does not exist, or has no trained weights.
        ValueError: No run is given, a run is damaged or generates no prefixes, or their vectors differ in width.
    """
    if not runs:
        raise ValueError("runs must name at least one run folder; got none.")
    names = [_name(Path(run)) for run in runs]
    found = []
    for run, name in zip(runs, names):
        model, _, settings = load_run(run, backbone)
        label = f"{name}, seed {settings['seed']}" if names.count(name) > 1 else name
        found.append(prefixes_of(model, attention, label))
    widths = {one.label: one.vectors["keys"].shape[1] for one in found}
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{label} {width}" for label, width in widths.items())
        raise ValueError(f"the runs have vectors of different widths ({said}). Give runs on backbones of one size.")
    return found


def _name(run: Path) -> str:
    run = run.resolve()
    if (system := system_folder(run)) is not None:
        return read_system(system)["label"]
    return run.parent.name if run.name.startswith("seed-") else run.name


def joint_pca(prefixes: Sequence[Prefixes], kind: str) -> tuple[PCA, list[np.ndarray]]:
    """Return a PCA of two components, fitted to the vectors of all runs, and per run its points (vectors, 2)."""
    fitted = PCA(2, svd_solver="full").fit(np.concatenate([one.vectors[kind] for one in prefixes]))
    return fitted, [fitted.transform(one.vectors[kind]) for one in prefixes]


def mean_distance(vectors: np.ndarray) -> float | None:
    """Return the mean Euclidean distance of all pairs of different rows. None for fewer than two rows."""
    count = len(vectors)
    if count < 2:
        return None
    blocks = (vectors[start : start + _BLOCK] for start in range(0, count, _BLOCK))
    return float(sum(cdist(block, vectors).sum() for block in blocks) / (count * (count - 1)))


def first_share(vectors: np.ndarray) -> float | None:
    """Return the share of the variance that the first principal component has. None if the vectors do not vary."""
    if len(vectors) < 2 or not vectors.var(axis=0).any():
        return None
    return float(PCA(1, svd_solver="full").fit(vectors).explained_variance_ratio_[0])


def distance_between_scenarios(prefixes: Prefixes, kind: str, among: np.ndarray | None = None) -> float | None:
    """Return the mean distance of the vectors of two scenarios in one layer and place.

    The mean is over all pairs of scenarios, layers and places. None if the scenarios share their vectors.

    Args:
        prefixes: The prefixes of a run.
        kind: "keys" or "values".
        among: Mask of the vectors that count, (vectors,). All if not given.
    """
    counts = prefixes.scenario >= 0 if among is None else among & (prefixes.scenario >= 0)
    found = [
        mean_distance(prefixes.vectors[kind][counts & (prefixes.layer == layer) & (prefixes.place == place)])
        for layer in np.unique(prefixes.layer[counts])
        for place in np.unique(prefixes.place[counts])
    ]
    known = [distance for distance in found if distance is not None]
    return float(np.mean(known)) if known else None


def _numbers(prefixes: Prefixes, kind: str, which: np.ndarray) -> list[object]:
    vectors = prefixes.vectors[kind][which]
    share = first_share(vectors)
    norm = float(np.linalg.norm(vectors, axis=1).mean())
    between = distance_between_scenarios(prefixes, kind, which)
    return [len(vectors), mean_distance(vectors), between, None if share is None else 100 * share, norm]


_FORMATS = {
    "vectors": ",d",
    "mean distance": ".3f",
    "between scenarios": ".3f",
    "first component, %": ".2f",
    "mean norm": ".3f",
}
_NOTES = (
    "mean distance: Euclidean, of all pairs of vectors. between scenarios: of vectors of two scenarios in one layer "
    "and place; empty if scenarios share the vectors. mean norm: the scale to compare distances with.",
    "first component, %: share of the variance of the vectors in their own first principal component.",
)


def spread_tables(prefixes: Sequence[Prefixes], attention: str) -> tuple[Table, Table]:
    """Return a table with one row per run and kind, and a table of each layer and each scenario by itself."""
    every, parts = [], []
    for one in prefixes:
        for kind in KINDS:
            every.append([one.label, kind, *_numbers(one, kind, np.full(len(one.layer), True))])
            parts += [[one.label, kind, name, *_numbers(one, kind, which)] for name, which in one.parts()]
    title = f"Spread of generated prefixes, {attention} attention"
    return (
        Table(title, ["run", "kind", *_FORMATS], every, _FORMATS, _NOTES, labels=2),
        Table(f"{title}, by layer and scenario", ["run", "kind", "of", *_FORMATS], parts, _FORMATS, _NOTES, labels=3),
    )
