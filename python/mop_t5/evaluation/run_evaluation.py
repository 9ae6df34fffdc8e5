"""Evaluate a trained run on a split. This is the work of `mop-t5 evaluate`. Nothing in this module prints a result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mop_t5.checks import check_choice, check_least
from mop_t5.data import SPLITS, Example, of_scenarios, read_split, read_tasks
from mop_t5.evaluation.baselines import baseline_texts
from mop_t5.evaluation.generation import generate_summaries, lengths_of
from mop_t5.evaluation.rouge import Rouge
from mop_t5.evaluation.scorer import Scorer, warn_of_lost_characters
from mop_t5.evaluation.scores import TaskScores, write_predictions, write_scores
from mop_t5.evaluation.tables import Table, score_table, to_markdown
from mop_t5.files import failure_in_a_sentence, replace_file
from mop_t5.operations.contents import Content, of_rows, write_contents
from mop_t5.operations.run_folder import content_of_weights, describe_output, load_run, prepare_output, write_settings

ALL_WEIGHTS = "all weights"  # the system of a run without a method


@dataclass(frozen=True)
class EvaluationConfig:
    """The run that is evaluated, and how.

    Args:
        run: folder that `mop-t5 train` wrote.
        corpus: corpus folder or dataset on the hub, if not the corpus of the run.
        split: "train", "valid" or "test".
        backbone: folder of the backbone, if it has moved since the run.
        floors: also score the baselines: the first user turn, a random and the nearest training reference.
        num_beams: beams of the search; 1 is greedy.
        batch_size: dialogues per batch.
        overwrite: replace an earlier evaluation of this split.
        dry_run: only print what would be done.
    """

    run: str
    corpus: str | None = None
    split: str = "test"
    backbone: str | None = None
    floors: bool = True
    num_beams: int = 1
    batch_size: int = 32
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_least(self, 1, "num_beams", "batch_size")


class RunEvaluation:
    """The evaluation of one trained run, with its inputs read and checked. Nothing is written before `run`.

    Args:
        config: The run folder of one training, and how it is evaluated.
        rouge: ROUGE, for tasks without metrics of their own.

    Raises:
        ValueError: The run is damaged, or no corpus is named.
        FileNotFoundError: The run or the split does not exist.
    """

    def __init__(self, config: EvaluationConfig, rouge: Rouge | None = None):
        self._config = config
        self._model, self._tokenizer, settings = load_run(config.run, config.backbone, on_accelerator=True)
        corpus = config.corpus or settings.get("corpus")
        if corpus is None:
            raise ValueError(f"{config.run} does not name its corpus. Pass --corpus.")
        self._corpus, self._lengths = str(corpus), lengths_of(settings)
        self._examples = of_scenarios(read_split(corpus, config.split), settings.get("scenarios"))
        self._scorer = Scorer(rouge, read_tasks(corpus))
        self.folder = evaluation_folder(config.run, config.split)
        self.system: str = settings.get("method") or ALL_WEIGHTS
        self.title = f"{self._scorer} on {len(self._examples)} {config.split} rows, {config.num_beams} beam(s)"

    def describe(self) -> str:
        """Describe what `run` would do, for a dry run."""
        config = self._config
        state = describe_output(self.folder, overwrite=config.overwrite)
        return (
            f"Would score {len(self._examples)} {config.split} rows of {self._corpus} with {config.num_beams} beam(s), "
            f"by {self._scorer}.\n{state}"
        )

    def run(self) -> tuple[dict[str, TaskScores], Table]:
        """Generate and score the summaries, and write the folder of the evaluation.

        Returns:
            The scores of the run, scenario -> scores, and the table of the scores beside the baselines.

        Raises:
            FileExistsError: There is an evaluation, and overwrite is not set.
            OSError: A file cannot be written.
        """
        config, examples = self._config, self._examples
        prepare_output(self.folder, overwrite=config.overwrite)
        lost = warn_of_lost_characters(self._tokenizer, examples, self._scorer, config.split)
        texts = baseline_texts(examples, read_split(self._corpus, "train")) if config.floors else {}
        search = {"num_beams": config.num_beams, "batch_size": config.batch_size, **self._lengths}
        texts[self.system] = generate_summaries(self._model, self._tokenizer, examples, progress=True, **search)
        scores = {system: self._scorer(examples, given) for system, given in texts.items()}
        table = score_table(self.title, scores, notes=[*self._scorer.remarks(examples, texts), *lost])
        with failure_in_a_sentence("the evaluation", self.folder):
            settings = {"run": config.run, "num_beams": config.num_beams}
            write_settings(self.folder, settings | scoring_settings(self._corpus, config.split, self._scorer))
            write_contents(self.folder, contents_of_evaluation(config.run, examples, config.split))
            replace_file(self.folder / "results.md", to_markdown(table).encode())
            write_predictions(self.folder, examples, texts)
            write_scores(self.folder, scores)  # the last file: its presence means that the evaluation is complete
        return scores[self.system], table


def evaluation_folder(run: str | Path, split: str) -> Path:
    """Return the folder of the evaluation of a run on a split."""
    return Path(run) / f"evaluation-{split}"


def contents_of_evaluation(run: str | Path, examples: Sequence[Example], split: str) -> dict[str, Content]:
    """Return contents.json of an evaluation: the rows, and the training that produced the weights in the run folder."""
    return {split: of_rows(examples), **content_of_weights(run)}


def scoring_settings(corpus: str, split: str, scorer: Scorer) -> dict[str, Any]:
    """Return the settings that scores depend on, as run.json of an evaluation has them.

    "metrics" are the metrics of tasks. The key is absent where no task has metrics of its own.
    """
    metrics: Mapping[str, Any] = {name: task.to_dict() for name, task in scorer.tasks.items()}
    settings = {"corpus": corpus, "split": split, **asdict(scorer.rouge)}
    return settings | ({"metrics": metrics} if metrics else {})
