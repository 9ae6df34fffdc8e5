"""mop-t5 params"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import mop_t5
from mop_t5.evaluation import Table, show
from mop_t5.methods import get


def params(
    backbone: str = "t5-pegasus-base",
    preset: str | None = "paper",
    methods: list[str] | None = None,
    scenarios: int = 5,
    options: dict[str, Any] | None = None,
) -> None:
    """Count what each method trains on a backbone. For a known backbone no weights are needed or made.

      mop-t5 params --preset paper --backbone t5-pegasus-base
      mop-t5 params --methods '[mop]' --scenarios 20 --preset null --options.prefix_length 80

    Args:
        backbone: a known architecture such as "t5-pegasus-base" or "mt5-base", or a backbone's folder.
        preset: preset for the methods that have presets; null for their own defaults.
        methods: names of the methods; all if not given.
        scenarios: how many scenarios there are.
        options: fields for the methods that have them, such as {"prefix_length": 80}.
    """
    if scenarios < 1:
        raise ValueError(f"scenarios must be at least 1, got {scenarios}.")
    build = mop_t5.build_backbone if backbone in mop_t5.known_backbones() else None
    if build is None and not Path(backbone).is_dir():
        known = ", ".join(mop_t5.known_backbones())
        raise ValueError(f"backbone must be a folder or one of {known}; got {backbone!r}.")
    given = dict(options or {}) | ({"preset": preset} if preset is not None else {})
    model = build(backbone, device="meta") if build else mop_t5.load_backbone(backbone)
    chosen = {name: {field.name for field in fields(get(name).Config)} for name in methods or mop_t5.methods()}
    unknown = sorted(set(given) - {"preset"} - set().union(*chosen.values()))
    if unknown:
        raise ValueError(f"no method has the field {', '.join(unknown)}. `mop-t5 train` names a method's fields.")
    rows = []
    for name, valid in chosen.items():
        own = {key: value for key, value in given.items() if key in valid}
        mop_t5.attach(model, name, scenarios=[f"scenario {i + 1}" for i in range(scenarios)], **own)
        count = mop_t5.count_parameters(model)
        rows.append((name, f"{count.trained:,}", f"{100 * count.share:.4f} %", f"{count.total / count.backbone:.4f}"))
        backbone_size = count.backbone
        mop_t5.detach(model)
    title = f"{backbone}: {backbone_size:,} parameters, {scenarios} scenarios, preset {preset}"
    show(Table(title, ["method", "trained", "share of the backbone", "total / backbone"], rows))
