"""mop-t5 params."""

from typing import Any

from mop_t5.evaluation import present

from mop_lab.suites.sizes import OVERVIEW, parameter_table
from mop_lab.suites.systems import all_systems, choose, systems_of


def params(
    backbone: str | None = None,
    methods: list[str] | None = None,
    scenarios: int = 5,
    options: dict[str, Any] | None = None,
    output: str | None = None,
) -> None:
    """Count the parameters that every method trains, with each of its presets and variants. No weights are needed.

      mop-t5 params
      mop-t5 params --backbone t5-pegasus-base
      mop-t5 params --methods '[mop]' --scenarios 20 --options.prefix_length 80

    Args:
        backbone: a known architecture such as "t5-pegasus-base", or the folder of a backbone. The default is four
            architectures.
        methods: names of the methods. The default is all methods with a row in the tables.
        scenarios: number of scenarios.
        options: fields in place of those of the presets, for the methods that have them: {"prefix_length": 80}.
        output: folder for params.md and params.csv. The default only prints.
    """
    for name in methods or ():
        if not systems_of(name).fields:
            raise ValueError(
                f"methods names {name!r}, which has no row in the tables: it needs fields of its own. Attach it and "
                "call mop_t5.count_parameters."
            )
    labels = [label for label, system in all_systems().items() if methods is None or system.method in methods]
    backbones = OVERVIEW if backbone is None else [backbone]
    present([parameter_table(backbones, choose(labels, labels, options), scenarios)], "params", output)
