"""How many parameters the systems train: Table 4, and the same for several backbones. No weights are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mop_t5
from mop_t5.evaluation import Table
from transformers import PreTrainedModel

from mop_lab.suites import paper
from mop_lab.suites.systems import System

OVERVIEW = ("t5-base", "t5-large", "mt5-base", "t5-pegasus-base")


class Size(NamedTuple):
    trained: int
    total: int  # backbone and method; a system that is trained once a scenario has as many of both
    backbone: int

    @property
    def percent(self) -> float:
        """Trained parameters in % of the backbone's."""
        return 100 * self.trained / self.backbone


def skeleton(backbone: str, device: str = "meta") -> PreTrainedModel:
    """A backbone to count on: a known architecture, with random weights unless device is "meta", or a folder's. Raises
    ValueError for others."""
    if backbone in mop_t5.known_backbones():
        return mop_t5.build_backbone(backbone, device=device)
    if not Path(backbone).is_dir():
        known = ", ".join(mop_t5.known_backbones())
        raise ValueError(f"backbone must be a folder or one of {known}; got {backbone!r}.")
    return mop_t5.load_backbone(backbone)


def size_of(system: System, model: PreTrainedModel, scenarios: int) -> Size:
    """Attach the system to a plain backbone, count, detach."""
    if scenarios < 1:
        raise ValueError(f"scenarios must be at least 1, got {scenarios}.")
    names = [f"scenario {i + 1}" for i in range(scenarios)]
    mop_t5.attach(model, system.config(names))
    count = mop_t5.count_parameters(model)
    mop_t5.detach(model)
    copies = scenarios if system.separate else 1
    return Size(copies * count.trained, copies * count.total, count.backbone)


def table_4(backbone: str, systems: Sequence[System], scenarios: int) -> Table:
    """A row a system: all parameters over the backbone's, trained ones in % of it, beside the paper's figures."""
    model = skeleton(backbone)
    rows, formats = [], {"trained": ",d", "trained, %": ".4f", "total, x": ".4f"}
    formats |= {"paper: trained, %": ".3f", "paper: total, x": ".3f", "paper: R-L": ".2f"}
    for system in systems:
        size = size_of(system, model, scenarios)
        total, percent, rouge = paper.TABLE_4.get(system.label, (None, None, None))
        rows.append([system.label, size.total / size.backbone, size.percent, size.trained, total, percent, rouge])
    title = f"Table 4. Parameters on {backbone} ({size.backbone:,}), {scenarios} scenarios"
    columns = ["system", "total, x", "trained, %", "trained", "paper: total, x", "paper: trained, %", "paper: R-L"]
    return Table(title, columns, rows, formats, (*paper.NOTES[4], *_notes(systems, scenarios)))


def sizes_table(backbones: Sequence[str], systems: Sequence[System], scenarios: int) -> Table:
    """A row a system; for every backbone the trained parameters, and these in % of the backbone's. For a single
    backbone all parameters over the backbone's, too."""
    models = {backbone: skeleton(backbone) for backbone in backbones}
    sizes = [[size_of(system, model, scenarios) for model in models.values()] for system in systems]
    formats: dict[str, str] = {}
    for backbone in backbones:
        formats |= {backbone: ",d", f"{backbone}, %": ".4f"}
    if len(backbones) == 1:
        formats["total, x"] = ".4f"
    rows: list[list[object]] = []
    for system, mine in zip(systems, sizes):
        fields = ", ".join(f"{name}={value}" for name, value in system.options.items())
        numbers = [number for size in mine for number in (size.trained, size.percent)]
        rows.append([system.label, system.method, fields, *numbers])
    counts = [mop_t5.count_parameters(model).backbone for model in models.values()]
    rows.append(["the backbone itself", None, None, *(number for count in counts for number in (count, 100.0))])
    if len(backbones) == 1:
        for row, total in zip(rows, [*(mine[0].total / mine[0].backbone for mine in sizes), 1.0]):
            row.append(total)
    title = f"Trained parameters, and these in % of the backbone's; {scenarios} scenarios"
    columns = ["system", "method", "fields", *formats]
    return Table(title, columns, rows, formats, _notes(systems, scenarios), labels=3)


def _notes(systems: Sequence[System], scenarios: int) -> tuple[str, ...]:
    separate = [system.label for system in systems if system.separate]
    return tuple(f"{label} is {scenarios} models, one a scenario, counted together." for label in separate)
