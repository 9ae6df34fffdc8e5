"""Evaluate a trained run on a split. This is the work of `mop-t5 evaluate`. Nothing in this module prints a result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mop_t5.checks import check_choice, check_int
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


class Evaluation(NamedTuple):
    """The result of `RunEvaluation.run`.

    Attributes:
        folder: The folder of the evaluation.
        scores: The scores of the run: scenario -> scores.
        table: The scores of the run beside the baselines.
    """

    folder: Path
    scores: dict[str, TaskScores]
    table: Table


class RunEvaluation:
    """The evaluation of one trained run, with its inputs read and checked. Nothing is written before `run`.

    Args:
        run: The run folder of one training.
        corpus: The corpus folder. None takes the corpus of the run.
        split: "train", "valid" or "test".
        backbone: The folder of the backbone, if it has moved since the run.
        baselines: Also score the baselines.
        rouge: ROUGE, for tasks without metrics of their own.
        num_beams: Beams of the search. 1 is greedy.
        batch_size: Dialogues per batch.
        overwrite: Replace an earlier evaluation of this split.

    Raises:
        ValueError: A setting is wrong, or the run is damaged.
        FileNotFoundError: The run or the split does not exist.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        corpus: str | None = None,
        split: str = "test",
        backbone: str | None = None,
        baselines: bool = True,
        rouge: Rouge | None = None,
        num_beams: int = 1,
        batch_size: int = 32,
        overwrite: bool = False,
    ):
        check_choice("split", split, SPLITS)
        check_int("num_beams", num_beams, 1)
        check_int("batch_size", batch_size, 1)
        self._run, self._split, self._overwrite, self._baselines = Path(run), split, overwrite, baselines
        self._search: dict[str, Any] = {"num_beams": num_beams, "batch_size": batch_size}
        self._model, self._tokenizer, settings = load_run(run, backbone, on_accelerator=True)
        data = corpus or settings.get("corpus")
        if data is None:
            raise ValueError(f"{run} does not name its corpus. Pass --corpus.")
        self._corpus, self._lengths = str(data), lengths_of(settings)
        self._examples = of_scenarios(read_split(data, split), settings.get("scenarios"))
        self._scorer = Scorer(rouge, read_tasks(data))
        self.folder = evaluation_folder(run, split)
        self.system: str = settings.get("method") or ALL_WEIGHTS
        self.title = f"{self._scorer} on {len(self._examples)} {split} rows, {num_beams} beam(s)"

    def describe(self) -> str:
        """Describe what `run` would do, for a dry run."""
        state = describe_output(self.folder, overwrite=self._overwrite)
        return (
            f"Would score {len(self._examples)} {self._split} rows of {self._corpus} with "
            f"{self._search['num_beams']} beam(s), by {self._scorer}.\n{state}"
        )

    def run(self, progress: bool = True) -> Evaluation:
        """Generate and score the summaries, and write the folder of the evaluation.

        Args:
            progress: Show a bar while summaries are generated.

        Raises:
            FileExistsError: There is an evaluation, and overwrite is not set.
            OSError: A file cannot be written.
        """
        prepare_output(self.folder, overwrite=self._overwrite)
        lost = warn_of_lost_characters(self._tokenizer, self._examples, self._scorer, self._split)
        texts = baseline_texts(self._examples, read_split(self._corpus, "train")) if self._baselines else {}
        texts[self.system] = generate_summaries(
            self._model, self._tokenizer, self._examples, progress=progress, **self._search, **self._lengths
        )
        scores = {system: self._scorer(self._examples, given) for system, given in texts.items()}
        table = score_table(self.title, scores, notes=[*self._scorer.remarks(self._examples, texts), *lost])
        with failure_in_a_sentence("the evaluation", self.folder):
            settings = {"run": str(self._run), "num_beams": self._search["num_beams"]}
            write_settings(self.folder, settings | scoring_settings(self._corpus, self._split, self._scorer))
            write_contents(self.folder, contents_of_evaluation(self._run, self._examples, self._split))
            replace_file(self.folder / "results.md", to_markdown(table).encode())
            write_predictions(self.folder, self._examples, texts)
            write_scores(self.folder, scores)  # the last file: its presence means that the evaluation is complete
        return Evaluation(self.folder, scores[self.system], table)


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
