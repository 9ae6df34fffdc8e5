"""Keep the source prompts of ATTEMPT and SPoT: `mop-t5 prompts add | list | remove`."""

from mop_t5.evaluation import Table, present
from mop_t5.methods.parts.spot import SIMILARITIES, similarities
from mop_t5.storage import prompt_library


def prompts_add(library: str, name: str, adapter: str, scenario: str | None = None, overwrite: bool = False) -> None:
    """Copy the prompt of a trained prompt_tuning into a library. The library is made if it does not exist.

      mop-t5 prompts add --library prompts --name mnli --adapter runs/mnli/adapter
      mop-t5 prompts add --library prompts --name taxi --adapter runs/all/adapter --scenario taxi

    Args:
        library: folder of the library.
        name: name of the prompt in the library.
        adapter: folder of the saved prompt_tuning.
        scenario: the scenario of the prompt, if the adapter has one prompt per scenario.
        overwrite: replace a prompt of this name.
    """
    added = prompt_library.add(library, name, adapter, scenario, overwrite)
    print(f"Written to {library}: {name}, {len(added.prompt)} rows. `mop-t5 prompts list --library {library}`")


def prompts_list(library: str, like: str | None = None, scenario: str | None = None, output: str | None = None) -> None:
    """List the prompts of a library, and their similarity to a trained prompt.

      mop-t5 prompts list --library prompts
      mop-t5 prompts list --library prompts --like runs/cola/adapter

    Args:
        library: folder of the library.
        like: folder of a saved prompt_tuning to compare with, by the similarities of SPoT.
        scenario: the scenario of the prompt, if `like` has one prompt per scenario.
        output: folder for prompts.md and prompts.csv; only printed if not given.
    """
    prompts = [prompt_library.read(library, name) for name in prompt_library.names(library)]
    rows: list[list[object]] = [[p.name, ", ".join(p.scenarios), p.backbone["name"], *p.prompt.shape] for p in prompts]
    columns = ["prompt", "trained on", "backbone", "rows", "width"]
    if like is not None:
        target = prompt_library.read_adapter(like, scenario)
        for row, source in zip(rows, prompts):
            row += [similarities(target.prompt, source.prompt[None], measure).item() for measure in SIMILARITIES]
        columns += SIMILARITIES
    formats = dict.fromkeys(SIMILARITIES, ".4f")
    present([Table(f"Source prompts in {library}", columns, rows, formats, labels=3)], "prompts", output)


def prompts_remove(library: str, name: str) -> None:
    """Remove a prompt from a library. Methods that were attached with it have a copy, and keep working.

      mop-t5 prompts remove --library prompts --name mnli

    Args:
        library: folder of the library.
        name: name of the prompt.
    """
    prompt_library.remove(library, name)
    print(f"Removed from {library}: {name}.")
