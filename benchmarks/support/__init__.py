"""Code that the benchmarks and the commands of benchmarks/ share."""
