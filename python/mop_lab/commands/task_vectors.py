"""mop-t5 task-vectors."""

from pathlib import Path

import mop_t5
import torch
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.checks import check_choice, check_int
from mop_t5.data import of_scenarios, read_split, scenarios_of
from mop_t5.data.dataset_objects import place_of
from mop_t5.evaluation import Table, show
from mop_t5.files import check_writable, content_to_replace
from mop_t5.storage import task_vectors as vectors_file
from mop_t5.training import TrainingConfig

from mop_lab.attempt.few_shot import draw
from mop_lab.task_moe.task_representations import fisher_vectors, principal_components, text_vectors


def task_vectors(
    corpus: str,
    output: str,
    kind: str = "text",
    backbone: str | None = None,
    scenarios: list[str] | None = None,
    width: int | None = None,
    rows: int | None = None,
    steps: int = 2500,
    batch_size: int = 8,
    learning_rate: float = 3e-5,
    max_source: int = 512,
    max_target: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make the vectors that the routers of the method "task_moe" read: one vector per scenario of a corpus.

    random: drawn from a normal distribution. text: the mean of the backbone's encodings of the training dialogues.
    fisher: adapters are trained on each scenario. Their Fisher information (mean squared gradients) is reduced to its
    principal components. With n scenarios there are at most n - 1 components.

      mop-t5 task-vectors --corpus DIR --backbone DIR --output text.safetensors
      mop-t5 task-vectors --corpus DIR --kind random --width 768 --output random.safetensors
      mop-t5 task-vectors --corpus DIR --backbone DIR --kind fisher --rows 500 --output fisher.safetensors

    Args:
        corpus: folder with train.jsonl.
        output: file for the vectors.
        kind: "random", "text" or "fisher".
        backbone: folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub. Not for random.
        scenarios: the scenarios. The default is all.
        width: width of the vectors, for random (default 768) and fisher (default at most 128).
        rows: highest number of training rows per scenario, drawn with the seed. The default is all.
        steps: steps of the training of the adapters, for fisher, like the next three flags.
        batch_size: rows per batch, for text too.
        learning_rate: learning rate of the adapters.
        max_source: dialogue tokens kept, for text too.
        max_target: summary tokens kept.
        seed: seed of everything that is random.
        overwrite: replace the file if it exists.
    """
    check_choice("kind", kind, ("random", "text", "fisher"))
    for name, value in (("width", width), ("rows", rows)):
        if value is not None:
            check_int(name, value, 1)
    if width is not None and kind == "text":
        raise ValueError("width is not for kind 'text': its vectors are as wide as the backbone. Leave it out.")
    if (backbone is None) != (kind == "random"):
        raise ValueError(f"backbone must be given for text and fisher, and only there; got {backbone!r} for {kind}.")
    content_to_replace(output, overwrite, is_folder=False)
    check_writable(Path(output).parent)
    examples = of_scenarios(read_split(corpus, "train"), scenarios)
    names = scenarios or scenarios_of(examples)
    if rows is not None:
        examples = draw(examples, rows, seed)
    by_task = [of_scenarios(examples, [name]) for name in names]
    about: dict[str, object] = {"kind": kind, "corpus": place_of(corpus), "rows": rows, "seed": seed}
    if backbone is None:
        vectors = vectors_file.random_vectors(len(names), width or 768, seed)
    else:
        model, tokenizer = mop_t5.load_backbone(backbone), load_tokenizer(backbone)
        about["backbone"] = backbone
        if kind == "text":
            vectors = text_vectors(model, tokenizer, by_task, max_source=max_source, batch_size=batch_size)
        else:
            training = TrainingConfig(
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                max_source=max_source,
                max_target=max_target,
                seed=seed,
            )
            raw = fisher_vectors(model, tokenizer, by_task, training)
            vectors = principal_components(raw, width or 128)
            about |= {"steps": steps, "learning_rate": learning_rate, "numbers": raw.shape[1]}
    vectors_file.write(output, names, vectors, about)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cells = [[name, len(own), *cosines] for name, own, cosines in zip(names, by_task, (unit @ unit.T).tolist())]
    show(Table("Cosines between the vectors", ["scenario", "rows", *names], cells, dict.fromkeys(names, ".3f")))
    print(f"Written to {output}: {len(names)} vectors of width {vectors.shape[1]}. Use it by --options.task_vectors.")
