"""The experiments on task-level mixtures of experts."""
