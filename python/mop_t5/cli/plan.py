"""Plan the memory of a training: `mop-t5 plan`."""

from typing import Any

from mop_t5.evaluation import Table, show
from mop_t5.training.memory_plan import RESERVE, Devices, MemoryPlan, PlannedStep, plan_memory

DOES_NOT_FIT = 3  # exit code


def plan(
    step: PlannedStep,
    backbone: str,
    devices: str,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> int:
    """Say how much memory a training step takes on each device, and whether it fits. Nothing is loaded.

    The exit code is 0 if the step fits and 3 if it does not.

      mop-t5 plan --backbone t5-11b --method mop --batch 8 --source 512 --target 64 --devices 2x80GB
      mop-t5 plan --backbone DIR --method mop --devices 1x24GiB --quantise 4bit --dtype bfloat16
      mop-t5 plan --backbone t5-3b --devices 8x40GB --shard fsdp --gradient_checkpointing

    Args:
        step: the step.
        backbone: size of a published backbone, such as t5-small; or folder of a backbone or of its config.json; or its
            name on the model hub.
        devices: number and size of the devices, such as 2x80GB or 8x24GiB. GB is 10^9 bytes, GiB is 2^30 bytes.
        method: name of the method to tune. Without it all weights of the backbone are trained.
        options: fields of the method, such as {"prefix_length": 20}; as flags --options.prefix_length 20.
    """
    planned = plan_memory(backbone, method, step, Devices.read(devices), options)
    show(table_of(planned, f"{method or 'all weights'} on {backbone}"))
    return 0 if planned.fits else DOES_NOT_FIT


def table_of(plan: MemoryPlan, title: str) -> Table:
    """Return a table with one row per part."""
    count, size = plan.devices.count, plan.devices.size
    rows = [(part, size_in_gb(number), number / size) for part, number in plan.parts.items()]
    rows += [("total", size_in_gb(plan.total), plan.total / size)]
    verdict = "It fits" if plan.fits else "It does not fit"
    notes = [
        f"{verdict}: {size_in_gb(plan.total):.3f} GB of {size_in_gb(plan.available):.3f} GB. Of each device "
        f"{RESERVE:.0%} are left for CUDA, its libraries and fragmentation."
    ]
    title = f"Memory of a training step: {title}, {count} x {size_in_gb(size):.3f} GB (GB is 10^9 bytes)"
    formats = {"GB per device": ".3f", "share": ".1%"}
    return Table(title, ["part", "GB per device", "share"], rows, formats, notes)


def size_in_gb(number: int) -> float:
    """Return bytes in 10^9 bytes."""
    return number / 10**9
