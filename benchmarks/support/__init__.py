"""What the benchmarks and the commands of this folder share: works, contenders, timers, floors, tables, goals."""
