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
    if not config.option.run_benchmarks:
        config.option.benchmark_disable = True  # pytest-benchmark's own switch: each function runs once, untimed
    elif config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "benchmarks")]
