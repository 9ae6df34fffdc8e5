"""Make a plain T5 of a mixture: `mop-t5 squeeze`."""

from mop_t5.attachment.attached_model import attached
from mop_t5.files import whole_folder
from mop_t5.methods.task_moe.method import TaskMoE
from mop_t5.operations.attach import count_parameters, scenario_ids
from mop_t5.operations.export import squeeze as squeezed
from mop_t5.operations.run_folder import load_run, prepare_output, write_settings


def squeeze(run: str, scenario: str, output: str, backbone: str | None = None, overwrite: bool = False) -> None:
    """Make a plain T5 of a trained task_moe for one scenario. Every layer keeps the expert with the largest weight.

    The result is exact if a route is one expert (selection straight_through, routes random_1). The output is a run
    folder, for `evaluate` and `generate`, and OUTPUT/backbone is for from_pretrained.

      mop-t5 squeeze --run runs/moe --scenario taxi --output runs/moe-taxi

    Args:
        run: folder that `mop-t5 train` wrote.
        scenario: the scenario whose experts are taken.
        output: folder for the result. It must be new or empty.
        backbone: folder of the backbone, if it has moved since the run.
        overwrite: empty the output folder first if it holds an earlier run.
    """
    model, tokenizer, settings = load_run(run, backbone)
    plain = squeezed(model, scenario)
    folder = prepare_output(output, overwrite=overwrite)
    with whole_folder(folder / "backbone", "the backbone") as writing:
        plain.save_pretrained(writing)
        tokenizer.save_pretrained(writing)
    made: dict[str, object] = {"method": None, "options": {}, "scenarios": [scenario]}
    write_settings(folder, settings | made | {"backbone": str((folder / "backbone").resolve())})
    experts = count_parameters(model).total
    method = attached(model).mop
    assert isinstance(method, TaskMoE)
    weights = method.route_weights()[:, int(scenario_ids(model, scenario))]
    print(
        f"Written to {output}: {count_parameters(plain).total:,} parameters, of {experts:,} before. The experts "
        f"that were taken have a weight of {weights.amax(-1).mean():.3f}, the mean over layers."
    )
