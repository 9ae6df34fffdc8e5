"""Task-level mixture of experts."""
