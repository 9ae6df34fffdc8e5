"""Benchmarks. docs/benchmarks.md explains them, docs/gpu.md explains the commands for a GPU.

- pytest runs `bench_*.py`: `pytest --benchmark` measures, `pytest benchmarks` only shows that everything works.
  A file that times one operation bears the name of the operation.
- Every other file of this folder that has a `main` is a command, `python -m benchmarks.NAME`: `render` shows the
  results of a CPU, `device_tables` shows the results of a GPU; `gpu_run` is `make gpu`; `crossover` and `tune` measure
  the choices of the library on a GPU; `host_cost` measures the host without a GPU; `record_launches` and
  `compile_table` compile Triton's kernels ahead of time.
- The benchmarks and the commands share `support/`. A work (`work`) is an operation at one size, with its inputs and
  its least operations and bytes. A case (`cases`) proves that a contender (`contenders`, `pytorch_forms`) is right
  before it is timed (`timer`). `floors` holds the rates of the machine and the least times, `results` the JSON;
  `tables`, `goals` and `plots` show them. `launches` holds the launches of Triton's kernels as data, and `compiler`
  compiles them. `gpu_steps` lists the steps of `make gpu`. `two_trees` times two commits in turn, and `peak_memory`
  measures in processes of their own.
- `results/` holds the measured numbers, one file per module and machine.
"""
