"""What is timed: `pytest --benchmark` runs it, `python -m benchmarks.render` shows it. docs/benchmarks.md explains."""
