"""The flag --benchmark: `pytest --benchmark` times benchmarks/; without it each benchmark runs once, small."""

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--benchmark",
        action="store_true",
        dest="run_benchmarks",
        help="run benchmarks/ at full size, print the tables, write benchmarks/results/*.json",
    )


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_*.py")
    option = config.option
    if not option.run_benchmarks:
        if not (option.benchmark_only or option.benchmark_enable):  # pytest-benchmark's own options keep their meaning
            option.benchmark_disable = True  # each function runs once, untimed
        return
    option.benchmark_quiet = True  # benchmarks/conftest.py prints the table, with ratios and floors
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "benchmarks")]
