"""The command `mop-t5`: train, evaluate, generate, params, table, prompts, attempt and others.

The flags of a command are made from its function in commands/. An error is one sentence on stderr and exit code 1 (2
for a wrong flag, 130 where Ctrl-C stopped it); with MOP_T5_DEBUG=1 it shows where it was raised.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

_INTRO = """Tune a frozen T5 on dialogues of several scenarios, and see what that is worth.

  mop-t5 train         --corpus DIR --backbone DIR --method mop --output RUN
  mop-t5 evaluate      --run RUN                      scores per scenario, beside floors
  mop-t5 generate      --run RUN --input FILE         summaries of new dialogues
  mop-t5 params                                       how many parameters each method trains
  mop-t5 table         1 | 2 | 3 | 4                  all methods on one corpus, beside the MOP paper's numbers
  mop-t5 compare       --corpus DIR --backbone DIR --output OUT   every method with equal steps, and how sure it is
  mop-t5 prompts       add | list | remove            source prompts, for ATTEMPT and SPoT
  mop-t5 attempt       sources | ablations | ...      the experiments of the ATTEMPT paper
  mop-t5 task-vectors  --corpus DIR --output FILE     what the routers of task_moe read
  mop-t5 moe           compare | adapt | ...          the experiments on task-level mixtures of experts
  mop-t5 analyse       prefixes | variance | ...      what the MOP paper analyses beside its tables
  mop-t5 squeeze       --run RUN --scenario NAME --output DIR   a plain T5 of a mixture, for one scenario
  mop-t5 report        RUNS                           one HTML page: scores, plots, predictions side by side
  mop-t5 corpus        convert | crosswoz | floors    corpora of CSV, TSV and JSON files; scores without a model
  mop-t5 convert       --checkpoint DIR --output DIR  a backbone of the published T5-pegasus
  mop-t5 export        --run RUN --output DIR         generated prefixes, without what generates them
  mop-t5 demo                                         all of it in a few minutes on a CPU, without pretrained weights

A corpus is a folder with train, valid and test `.jsonl` or `.jsonl.gz`, one object a line:
  {"scenario": "taxi", "dialogue": "...", "summary": "..."}
Flags can stand in a YAML or JSON file under the same names: mop-t5 train --config train.yaml
`mop-t5 COMMAND --help` explains the flags of a command."""

# a command's function in commands/, or those of the commands under a name
COMMANDS: dict[str, str | dict[str, str]] = {
    "train": "train.train",
    "evaluate": "evaluate.evaluate",
    "generate": "generate.generate",
    "params": "params.params",
    "table": {"1": "table.table_1", "2": "table.table_2", "3": "table.table_3", "4": "table.table_4"},
    "compare": "compare.compare",
    "prompts": {"add": "prompts.prompts_add", "list": "prompts.prompts_list", "remove": "prompts.prompts_remove"},
    "attempt": {
        "sources": "attempt.attempt_sources",
        "prior": "attempt.attempt_prior",
        "ablations": "attempt.attempt_ablations",
        "modularity": "attempt.attempt_modularity",
        "few-shot": "attempt.attempt_few_shot",
        "attention": "attempt.attempt_attention",
        "scale": "attempt.attempt_scale",
        "memory": "attempt.attempt_memory",
    },
    "task-vectors": "task_vectors.task_vectors",
    "moe": {
        "compare": "moe.moe_compare",
        "adapt": "moe.moe_adapt",
        "routes": "moe.moe_routes",
        "disable": "moe.moe_disable",
    },
    "analyse": {
        "prefixes": "analyse.analyse_prefixes",
        "variance": "analyse.analyse_variance",
        "lengths": "analyse.analyse_lengths",
        "share": "analyse.analyse_share",
        "values": "cases.analyse_values",
        "cases": "cases.analyse_cases",
    },
    "report": "report.report",
    "squeeze": "squeeze.squeeze",
    "corpus": {
        "convert": "corpus.corpus_convert",
        "crosswoz": "crosswoz.corpus_crosswoz",
        "floors": "floors.corpus_floors",
    },
    "convert": "convert.convert",
    "export": "export.export",
    "demo": "demo.demo",
}
_NESTED_HELP = {
    "table": """The tables of the MOP paper, with the paper's numbers beside ours.

  mop-t5 table 1 --corpus DIR                                     what a corpus holds
  mop-t5 table 2 --corpus DIR --backbone DIR --output DIR         every system, trained and scored
  mop-t5 table 3 --corpus DIR --backbone DIR --output DIR         MOP without its parts, trained and scored
  mop-t5 table 4                                                  parameters of every system""",
    "prompts": """A library of source prompts, which ATTEMPT mixes and SPoT starts from.

  mop-t5 prompts add --library DIR --name NAME --adapter DIR      copy one out of a trained prompt_tuning
  mop-t5 prompts list --library DIR                               what a library holds
  mop-t5 prompts remove --library DIR --name NAME                 take one out""",
    "attempt": """The experiments of the ATTEMPT paper. What trains goes on where it was interrupted.

  mop-t5 attempt sources --corpus DIR --backbone DIR --library LIB --output OUT      source prompts, into a library
  mop-t5 attempt prior --corpus DIR --backbone DIR --library LIB --output OUT        the attention that tasks start from
  mop-t5 attempt ablations --corpus DIR --backbone DIR --library LIB --output OUT    PT, SPoT, ATTEMPT and its parts
  mop-t5 attempt modularity --corpus DIR --backbone DIR --library LIB --output OUT   source prompts one by one
  mop-t5 attempt few-shot --corpus DIR --backbone DIR --library LIB --output OUT     4, 16 and 32 rows a task
  mop-t5 attempt attention --run DIR                                                 which prompts a task attends to
  mop-t5 attempt scale --suites '[OUT]' --output DIR                                 scores against parameters
  mop-t5 attempt memory --backbones '[t5-small, t5-base]' --batch_sizes '[8, 2]'     peak memory of training""",
    "moe": """The experiments on task-level mixtures of experts. What trains goes on where it was interrupted.

  mop-t5 moe compare --corpus DIR --backbone DIR --output OUT             what matters in training; which router
  mop-t5 moe adapt --corpus DIR --backbone DIR --experts DIR --output OUT unseen tasks, as they are and few-shot
  mop-t5 moe routes --run RUN --features FILE                             who takes which expert, and why
  mop-t5 moe disable --run RUN --features FILE                            what is lost without some experts""",
    "analyse": """What the MOP paper analyses beside its tables: of finished runs, and of a sweep that trains.

  mop-t5 analyse prefixes RUN RUN --output DIR                            where generated prefixes lie
  mop-t5 analyse variance OUT --output DIR                                how much scores vary over seeds
  mop-t5 analyse lengths --corpus DIR --backbone DIR --output OUT         scores by prefix length
  mop-t5 analyse share OUT --output DIR                                   scores by the share that is trained
  mop-t5 analyse values OUT --output DIR                                  values that summaries keep and invent
  mop-t5 analyse cases OUT --output DIR                                   dialogues and summaries side by side""",
    "corpus": """Corpora made of the files that others publish, and what a corpus gives for free.

  mop-t5 corpus convert --tasks examples/tasks/glue.yaml --input raw --output DIR    tasks, with their metrics
  mop-t5 corpus convert --input calls.csv --scenario '{business}' --dialogue '{text}' --summary '{note}' --output DIR
  mop-t5 corpus convert --tasks dialogsum --input raw --output DIR                   also samsum, csds, lccc, crosswoz
  mop-t5 corpus crosswoz --clone DIR --output DIR                                    Chinese dialogues of five scenarios
  mop-t5 corpus floors --corpus DIR                                                  scores that no model made""",
}
_PROGRAM = "mop-t5"
_STOPPED = 130  # as a shell reports what Ctrl-C ended
_CURES = {
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "Choose another folder",
    errno.EISDIR: "Name a file",
    errno.EEXIST: "Choose another folder",
    errno.EACCES: "Choose another folder, or get the right to use this one",
    errno.EPERM: "Choose another folder, or get the right to use this one",
    errno.EROFS: "Choose another folder",
    errno.ENOSPC: "Make room there or choose another folder",
    errno.EDQUOT: "Make room there or choose another folder",
    errno.EFBIG: "Choose another folder, or lift the limit on the size of files",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or what the command returns; 1 for an error; 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # a reader that is gone shows here, and not after the last line of Python
    except KeyboardInterrupt as stop:
        _say(arguments, str(stop) or "interrupted. What it had written is whole; the same command starts anew.")
        return _STOPPED
    except BrokenPipeError:  # as of `| head`, which has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("MOP_T5_DEBUG"):
            raise
        _say(arguments, _sentence(error))
        return 1


def _run(arguments: list[str]) -> int:
    from mop_t5.command_flags import function_of, parse  # here, so that a package that is missing is one sentence, too

    command, given = parse(arguments, COMMANDS, {_PROGRAM: _INTRO, **_NESTED_HELP})
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and command is not function_of(COMMANDS["train"]):
        raise RuntimeError(f"only train runs in several processes, and this is one of {processes}.")
    return command(**given) or 0


def _say(arguments: Sequence[str], sentence: str) -> None:
    """One line on stderr, by the first of several processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        inner = COMMANDS.get(arguments[0], {}) if arguments else {}
        words = arguments[: 1 + (isinstance(inner, dict) and arguments[1:2] != [] and arguments[1] in inner)]
        print(f"{' '.join([_PROGRAM, *words])}: {' '.join(sentence.split())}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    """What was wrong and what to do."""
    said = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f'the package {error.name.split(".")[0]} is not installed. Install it: pip install "mop-kernels[t5]"'
    if isinstance(error, OSError) and error.errno and error.strerror == os.strerror(error.errno):  # Python's own words
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}. {_CURES.get(error.errno, 'Try again, or choose another place')}."
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"memory ran out{f' ({said})' if said else ''}. Lower batch_size, max_source or num_beams."
    if isinstance(error, (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError)) and said:
        return said
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__} ({said}) in {Path(last.filename).name}, line {last.lineno}, which nobody expected. "
        "Please report it with what MOP_T5_DEBUG=1 shows."
    )


if __name__ == "__main__":
    code = main()
    distributed = sys.modules.get("torch.distributed")
    if code == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # processes that leave without a word can abort each other
    sys.exit(code)
