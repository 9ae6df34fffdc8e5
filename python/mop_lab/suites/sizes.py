"""The numbers of parameters that systems train: `params` and Table 4. No weights are made."""

from collections.abc import Sequence
from pathlib import Path

import mop_t5
from mop_t5.checks import check_int
from mop_t5.evaluation import Table
from transformers import PreTrainedModel

from mop_lab.suites import paper
from mop_lab.suites.systems import System

OVERVIEW = ("t5-base", "t5-large", "mt5-base", "t5-pegasus-base")


def check_backbone(backbone: str) -> None:
    """Raise ValueError if `backbone` is neither a known architecture nor a folder."""
    if backbone not in mop_t5.known_backbones() and not Path(backbone).is_dir():
        known = ", ".join(mop_t5.known_backbones())
        raise ValueError(f"backbone must be a folder or one of {known}; got {backbone!r}.")


def skeleton(backbone: str, device: str = "meta") -> PreTrainedModel:
    """Return a backbone to count on.

    Args:
        backbone: A known architecture, or the folder of a backbone.
        device: Device of a known architecture. It has random weights, or none on "meta".

    Raises:
        ValueError: The backbone is neither.
    """
    check_backbone(backbone)
    if backbone in mop_t5.known_backbones():
        return mop_t5.build_backbone(backbone, device=device)
    return mop_t5.load_backbone(backbone)


def size_of(system: System, model: PreTrainedModel, scenarios: int) -> mop_t5.ParameterCount:
    """Attach a system to a plain backbone, count its parameters, and detach it.

    A system that trains one model per scenario counts the trained parameters and all parameters of all its models.
    """
    check_int("scenarios", scenarios, 1)
    mop_t5.attach(model, system.config([f"scenario {i + 1}" for i in range(scenarios)]))
    count = mop_t5.count_parameters(model)
    mop_t5.detach(model)
    copies = scenarios if system.separate else 1
    return mop_t5.ParameterCount(copies * count.trained, copies * count.total, count.backbone, copies * count.share)


def parameter_table(backbones: Sequence[str], systems: Sequence[System], scenarios: int) -> Table:
    """Return a table with one row per system, and a last row for the backbone itself.

    For every backbone there are two columns: the trained parameters, and their share of the backbone's in %. For a
    single backbone a third column has all parameters over the backbone's.
    """
    rows: list[list[object]] = [
        [system.label, system.method, ", ".join(f"{name}={value}" for name, value in system.options.items())]
        for system in systems
    ]
    rows.append(["the backbone itself", None, None])
    formats: dict[str, str] = {}
    for backbone in backbones:
        formats |= {backbone: ",d", f"{backbone}, %": ".4f"}
        model = skeleton(backbone)
        count = mop_t5.count_parameters(model)
        itself = count._replace(trained=count.backbone)
        for row, size in zip(rows, [*(size_of(system, model, scenarios) for system in systems), itself]):
            row += [size.trained, 100 * size.trained / size.backbone]
            row += [size.total / size.backbone] if len(backbones) == 1 else []
    if len(backbones) == 1:
        formats["total, x"] = ".4f"
    title = f"Trained parameters, and these in % of the backbone's; {scenarios} scenarios"
    separate = [system.label for system in systems if system.separate]
    notes = [f"{label} is {scenarios} models, one per scenario, counted together." for label in separate]
    return Table(title, ["system", "method", "fields", *formats], rows, formats, notes, labels=3)


def table_4(backbone: str, systems: Sequence[System], scenarios: int) -> Table:
    """Return Table 4: all parameters over the backbone's and trained parameters in %, beside the paper's numbers."""
    counted = parameter_table([backbone], systems, scenarios)
    *rows, (_, _, _, count, _, _) = counted.rows
    cells = [
        [label, total, percent, trained, *paper.TABLE_4.get(str(label), (None, None, None))]
        for label, _, _, trained, percent, total in rows
    ]
    formats = {"trained": ",d", "trained, %": ".4f", "total, x": ".4f"}
    formats |= {"paper: trained, %": ".3f", "paper: total, x": ".3f", "paper: R-L": ".2f"}
    title = f"Table 4. Parameters on {backbone} ({count:,}), {scenarios} scenarios"
    columns = ["system", "total, x", "trained, %", "trained", "paper: total, x", "paper: trained, %", "paper: R-L"]
    return Table(title, columns, cells, formats, (*paper.NOTES[4], *counted.notes))
