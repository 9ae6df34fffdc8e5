"""The commands of `mop-t5` that belong to the laboratory. `mop-t5` finds them by an entry point in pyproject.toml."""

from mop_t5.cli.commands import Command


def _one(function: str, flags: str, purpose: str) -> Command:
    return Command(((flags, purpose),), f"mop_lab.commands.{function}")


_TRAIN = "--corpus DIR --backbone DIR --output OUT"
_TABLE = "--corpus DIR --backbone DIR --output DIR"
_LIBRARY = "--corpus DIR --backbone DIR --library LIB --output OUT"
_EXPERTS = "--corpus DIR --backbone DIR --experts DIR --output OUT"
_MEMORY = "--backbones '[t5-small, t5-base]' --batch_sizes '[8, 2]'"
COMMANDS = {
    "table": Command(
        (("1 | 2 | 3 | 4", "all methods on one corpus, beside the MOP paper's numbers"),),
        purpose="The tables of the MOP paper, with the paper's numbers beside ours.",
        commands={
            "1": _one("table.table_1", "--corpus DIR", "statistics of a corpus"),
            "2": _one("table.table_2", _TABLE, "every system, trained and scored"),
            "3": _one("table.table_3", _TABLE, "MOP without its parts, trained and scored"),
            "4": _one("table.table_4", "", "parameters of every system"),
        },
    ),
    "compare": _one("compare.compare", _TRAIN, "every method with equal steps, with confidence intervals"),
    "params": _one("params.params", "", "how many parameters each method trains"),
    "attempt": Command(
        (("sources | ablations | ...", "the experiments of the ATTEMPT paper"),),
        purpose="The experiments of the ATTEMPT paper. Interrupted training resumes.",
        commands={
            "sources": _one("attempt.attempt_sources", _LIBRARY, "source prompts, into a library"),
            "prior": _one("attempt.attempt_prior", _LIBRARY, "the attention that tasks start from"),
            "ablations": _one("attempt.attempt_ablations", _LIBRARY, "PT, SPoT, ATTEMPT and its parts"),
            "modularity": _one("attempt.attempt_modularity", _LIBRARY, "source prompts one by one"),
            "few-shot": _one("attempt.attempt_few_shot", _LIBRARY, "4, 16 and 32 rows per task"),
            "attention": _one("attempt.attempt_attention", "--run DIR", "the prompts that each task attends to"),
            "scale": _one("attempt.attempt_scale", "--suites '[OUT]' --output DIR", "scores against parameters"),
            "memory": _one("attempt.attempt_memory", _MEMORY, "peak memory of training"),
        },
    ),
    "moe": Command(
        (("compare | adapt | ...", "the experiments on task-level mixtures of experts"),),
        purpose="The experiments on task-level mixtures of experts. Interrupted training resumes.",
        commands={
            "compare": _one("moe.moe_compare", _TRAIN, "design choices in training, and routers"),
            "adapt": _one("moe.moe_adapt", _EXPERTS, "unseen tasks, zero-shot and few-shot"),
            "routes": _one(
                "moe.moe_routes", "--run RUN --features FILE", "the experts of each task, and what explains them"
            ),
            "disable": _one("moe.moe_disable", "--run RUN --features FILE", "the loss of score without some experts"),
        },
    ),
    "task-vectors": _one("task_vectors.task_vectors", "--corpus DIR --output FILE", "the input of task_moe's routers"),
    "analyse": Command(
        (("prefixes | variance | ...", "what the MOP paper analyses beside its tables"),),
        purpose="The analyses of the MOP paper: of finished runs, and of a sweep that trains.",
        commands={
            "prefixes": _one("analyse.analyse_prefixes", "RUN RUN --output DIR", "where generated prefixes lie"),
            "variance": _one("analyse.analyse_variance", "OUT --output DIR", "how much scores vary over seeds"),
            "lengths": _one("analyse.analyse_lengths", _TRAIN, "scores by prefix length"),
            "share": _one("analyse.analyse_share", "OUT --output DIR", "scores by the trained share of parameters"),
            "values": _one("cases.analyse_values", "OUT --output DIR", "values that summaries keep and invent"),
            "cases": _one("cases.analyse_cases", "OUT --output DIR", "dialogues and summaries side by side"),
        },
    ),
    "report": _one("report.report", "RUNS", "one HTML page: scores, plots, predictions side by side"),
    "demo": _one("demo.demo", "", "all of it in a few minutes on a CPU, without pretrained weights"),
}
