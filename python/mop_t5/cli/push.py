"""Upload a run to the model hub: `mop-t5 push`."""

from mop_t5.operations.run_card import HubTarget, push_run


def push(hub: HubTarget, run: str, commit_message: str | None = None) -> None:
    """Upload the adapter of a run to the model hub, in one commit of its weights, its description and its model card.

    The card has the corpus, the training and the evaluations of the run. A card that was changed by hand is uploaded
    as it is. The token is that of `hf auth login` or HF_TOKEN. `mop_t5.load(backbone, "owner/name")` loads the adapter.

      mop-t5 push --run runs/mop --hub_model_id owner/name --licence apache-2.0

    Args:
        hub: where the adapter is uploaded.
        run: folder that `mop-t5 train` wrote.
        commit_message: message of the commit.
    """
    made = push_run(run, hub, commit_message)
    print(f"Uploaded to {made.commit_url}")
