"""Write generated prefixes: `mop-t5 export`."""

from pathlib import Path

from mop_t5.operations.attach import is_attached
from mop_t5.operations.contents import read_contents, write_contents
from mop_t5.operations.export import export as export_prefixes
from mop_t5.operations.run_folder import load_run, prepare_output, write_settings
from mop_t5.storage.adapter_folder import WEIGHTS_NAME


def export(run: str, output: str, backbone: str | None = None, overwrite: bool = False) -> None:
    """Write the prefixes that a trained method generates, without the network that generates them.

    The methods are mop, prefix_tuning and hyper_prefix. The output is a run folder, for `evaluate` and `generate`.
    mop_t5.load loads its adapter as the method fixed_prefix, with the same results and without the kernels.

      mop-t5 export --run runs/mop --output runs/mop-prefixes

    Args:
        run: folder that `mop-t5 train` wrote.
        output: folder for the result. It must be new or empty.
        backbone: folder of the backbone, if it has moved since the run.
        overwrite: empty the output folder first if it holds an earlier run or export.
    """
    model, _, settings = load_run(run, backbone)
    if not is_attached(model):
        raise ValueError(f"{run} trained all weights of its backbone: there are no prefixes to export.")
    folder = prepare_output(output, overwrite=overwrite)
    made = export_prefixes(model, folder / "adapter")
    write_settings(folder, settings | {"method": "fixed_prefix", "options": {}})
    if (made_of := read_contents(run)) is not None:
        write_contents(folder, made_of)
    sizes = [(Path(place) / "adapter" / WEIGHTS_NAME).stat().st_size / 1e6 for place in (run, output)]
    print(
        f"Written to {output}: {made.numbers:,} numbers, {sizes[1]:.2f} MB, instead of {made.parameters:,} "
        f"parameters, {sizes[0]:.2f} MB."
    )
