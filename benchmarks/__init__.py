"""What is timed. docs/benchmarks.md explains the benchmarks, docs/gpu.md the commands for a GPU.

- `bench_*.py` is run by pytest: `pytest --benchmark` measures, `pytest benchmarks` only shows that everything works.
  A file that times one operation bears its name.
- Every other file of this folder that has a `main` is a command, `python -m benchmarks.NAME`: `render` shows the
  results of a CPU, `device_tables` those of a GPU; `gpu_run` is `make gpu`; `crossover` and `tune` measure the choices
  of the library on a GPU; `host_cost` measures the host without a GPU; `record_launches` and `compile_table` compile
  Triton's kernels ahead of time, with `support/launches`, `launch_sample` and `compiler`.
- `support/` is shared by both. A work (`work`) is an operation at one size, with its inputs and its least operations
  and bytes. A case (`cases`) proves a contender (`contenders`, `pytorch_forms`) right before it is timed (`timer`).
  `floors` holds the rates of the machine and the least times, `results` the JSON; `tables`, `goals` and `plots` show
  them.
- `results/` holds the measured numbers, one file per module and machine.
"""
