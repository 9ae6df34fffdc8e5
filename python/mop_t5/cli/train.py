"""Train a run: `mop-t5 train`."""

import shlex
from typing import Any

from mop_t5.backbone.settings import LoadingSettings
from mop_t5.evaluation import Rouge, show
from mop_t5.operations.run_card import HubTarget, push_run
from mop_t5.operations.run_folder import processes
from mop_t5.training import TrainingConfig, TrainingRun


def train(
    training: TrainingConfig,
    loading: LoadingSettings,
    rouge: Rouge,
    hub: HubTarget,
    corpus: str,
    backbone: str,
    output: str,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    scenarios: list[str] | None = None,
    seeds: list[int] | None = None,
    stream: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a method on a frozen backbone, or all weights of a backbone where no method is named.

    The output folder can be given to `evaluate` and `generate`. Its run.json is the configuration with every default
    filled in: `--config OUTPUT/run.json --output ANOTHER` repeats the run. torchrun trains on several devices.
    --hub_model_id uploads the adapter and its model card to the model hub at the end. The token is that of
    `hf auth login` or of HF_TOKEN.

      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --options.prefix_length 20
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --evaluate_every 500 --patience 3
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --seeds '[0, 1, 2]'
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --stream rows
      mop-t5 train --config train.yaml --hub_model_id owner/name --licence apache-2.0
      mop-t5 train --corpus DIR --backbone DIR --method mop --output runs/mop --quantise 8bit
      torchrun --nproc_per_node 2 -m mop_t5.cli train --config train.yaml

    Args:
        training: how to train.
        loading: how the backbone is loaded.
        rouge: how ROUGE is counted when validating.
        hub: where the adapter is uploaded.
        corpus: folder with the split train, and valid if evaluate_every is set: .jsonl, .parquet, .arrow, or a folder
            of save_to_disk. Or a dataset on the hub: hub:OWNER/NAME, hub:OWNER/NAME@REVISION:CONFIG.
        backbone: folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub.
        output: folder for the result. It must be new or empty.
        method: name of the method to tune. Without it all weights of the backbone are trained.
        options: fields of the method, such as {"prefix_length": 20}; as flags --options.prefix_length 20.
        scenarios: train and validate on the rows of these scenarios only, such as '[taxi]'; all if not given.
        seeds: train once with each of these in place of seed, into OUTPUT/seed-N, and report mean and deviation.
        stream: folder for the training rows, which then stay on the disk instead of in memory, for corpora larger than
            memory. The first run writes them there, and later runs use them.
        overwrite: empty the output folder first if it holds an earlier run.
        resume: continue from the newest checkpoint in the output folder. The configuration must be the same, except
            for steps, patience, the intervals, and accumulation with the number of processes. The rows and the backbone
            must be the same; their folders may have moved.
        dry_run: only print what would be done.
    """
    run = TrainingRun(
        training,
        corpus,
        backbone,
        output,
        method=method,
        options=options,
        scenarios=scenarios,
        seeds=seeds,
        rouge=rouge,
        stream=stream,
        hub=hub,
        loading=loading,
        overwrite=overwrite,
        resume=resume,
    )
    is_main_process = processes().is_main_process
    if dry_run:
        plan = run.describe()  # every process checks its output folder
        if is_main_process:
            print(plan)
        return
    if is_main_process and run.cache is not None:
        print(run.cache)
    trained = run.run()
    if not is_main_process:
        return
    print(trained)
    if trained.table is not None:
        show(trained.table)
    print(f"Written to {output}. Next: mop-t5 evaluate --run {output}")
    if hub.hub_model_id is not None:
        _upload(output, hub)


def _upload(output: str, hub: HubTarget) -> None:
    """Upload the adapter of a finished run. Every error says that the run is complete, and how to upload it later."""
    kept = f"the run is complete in {output}, and is not on the hub"
    cure = f"Upload it by: mop-t5 push --run {shlex.quote(output)} {hub.flags}"
    try:
        print(f"Uploaded to {push_run(output, hub).commit_url}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {kept}. {cure}") from None
    except Exception as error:  # whatever the hub answers
        raise RuntimeError(f"{kept}: {error} {cure}") from error
