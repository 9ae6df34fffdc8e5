"""The commands of `mop-t5` that belong to the laboratory. `mop-t5` finds them by an entry point in pyproject.toml."""

from mop_t5.cli.commands import Command

_TABLE = Command(
    (("1 | 2 | 3 | 4", "all methods on one corpus, beside the MOP paper's numbers"),),
    purpose="The tables of the MOP paper, with the paper's numbers beside ours.",
    commands={
        "1": Command((("--corpus DIR", "statistics of a corpus"),), "mop_lab.commands.table.table_1"),
        "2": Command(
            (("--corpus DIR --backbone DIR --output DIR", "every system, trained and scored"),),
            "mop_lab.commands.table.table_2",
        ),
        "3": Command(
            (("--corpus DIR --backbone DIR --output DIR", "MOP without its parts, trained and scored"),),
            "mop_lab.commands.table.table_3",
        ),
        "4": Command((("", "parameters of every system"),), "mop_lab.commands.table.table_4"),
    },
)
_WITH_LIBRARY = "--corpus DIR --backbone DIR --library LIB --output OUT"
_ATTEMPT = Command(
    (("sources | ablations | ...", "the experiments of the ATTEMPT paper"),),
    purpose="The experiments of the ATTEMPT paper. Interrupted training resumes.",
    commands={
        "sources": Command(
            ((_WITH_LIBRARY, "source prompts, into a library"),), "mop_lab.commands.attempt.attempt_sources"
        ),
        "prior": Command(
            ((_WITH_LIBRARY, "the attention that tasks start from"),), "mop_lab.commands.attempt.attempt_prior"
        ),
        "ablations": Command(
            ((_WITH_LIBRARY, "PT, SPoT, ATTEMPT and its parts"),), "mop_lab.commands.attempt.attempt_ablations"
        ),
        "modularity": Command(
            ((_WITH_LIBRARY, "source prompts one by one"),), "mop_lab.commands.attempt.attempt_modularity"
        ),
        "few-shot": Command(
            ((_WITH_LIBRARY, "4, 16 and 32 rows per task"),), "mop_lab.commands.attempt.attempt_few_shot"
        ),
        "attention": Command(
            (("--run DIR", "the prompts that each task attends to"),), "mop_lab.commands.attempt.attempt_attention"
        ),
        "scale": Command(
            (("--suites '[OUT]' --output DIR", "scores against parameters"),), "mop_lab.commands.attempt.attempt_scale"
        ),
        "memory": Command(
            (("--backbones '[t5-small, t5-base]' --batch_sizes '[8, 2]'", "peak memory of training"),),
            "mop_lab.commands.attempt.attempt_memory",
        ),
    },
)
_MOE = Command(
    (("compare | adapt | ...", "the experiments on task-level mixtures of experts"),),
    purpose="The experiments on task-level mixtures of experts. Interrupted training resumes.",
    commands={
        "compare": Command(
            (("--corpus DIR --backbone DIR --output OUT", "design choices in training, and routers"),),
            "mop_lab.commands.moe.moe_compare",
        ),
        "adapt": Command(
            (("--corpus DIR --backbone DIR --experts DIR --output OUT", "unseen tasks, zero-shot and few-shot"),),
            "mop_lab.commands.moe.moe_adapt",
        ),
        "routes": Command(
            (("--run RUN --features FILE", "the experts of each task, and what explains them"),),
            "mop_lab.commands.moe.moe_routes",
        ),
        "disable": Command(
            (("--run RUN --features FILE", "the loss of score without some experts"),),
            "mop_lab.commands.moe.moe_disable",
        ),
    },
)
_ANALYSE = Command(
    (("prefixes | variance | ...", "what the MOP paper analyses beside its tables"),),
    purpose="The analyses of the MOP paper: of finished runs, and of a sweep that trains.",
    commands={
        "prefixes": Command(
            (("RUN RUN --output DIR", "where generated prefixes lie"),), "mop_lab.commands.analyse.analyse_prefixes"
        ),
        "variance": Command(
            (("OUT --output DIR", "how much scores vary over seeds"),), "mop_lab.commands.analyse.analyse_variance"
        ),
        "lengths": Command(
            (("--corpus DIR --backbone DIR --output OUT", "scores by prefix length"),),
            "mop_lab.commands.analyse.analyse_lengths",
        ),
        "share": Command(
            (("OUT --output DIR", "scores by the trained share of parameters"),),
            "mop_lab.commands.analyse.analyse_share",
        ),
        "values": Command(
            (("OUT --output DIR", "values that summaries keep and invent"),), "mop_lab.commands.cases.analyse_values"
        ),
        "cases": Command(
            (("OUT --output DIR", "dialogues and summaries side by side"),), "mop_lab.commands.cases.analyse_cases"
        ),
    },
)
COMMANDS = {
    "table": _TABLE,
    "compare": Command(
        (("--corpus DIR --backbone DIR --output OUT", "every method with equal steps, with confidence intervals"),),
        "mop_lab.commands.compare.compare",
    ),
    "params": Command((("", "how many parameters each method trains"),), "mop_lab.commands.params.params"),
    "attempt": _ATTEMPT,
    "moe": _MOE,
    "task-vectors": Command(
        (("--corpus DIR --output FILE", "the input of task_moe's routers"),),
        "mop_lab.commands.task_vectors.task_vectors",
    ),
    "analyse": _ANALYSE,
    "report": Command(
        (("RUNS", "one HTML page: scores, plots, predictions side by side"),), "mop_lab.commands.report.report"
    ),
    "demo": Command(
        (("", "all of it in a few minutes on a CPU, without pretrained weights"),), "mop_lab.commands.demo.demo"
    ),
}
