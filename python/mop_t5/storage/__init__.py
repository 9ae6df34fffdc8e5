"""Save methods, source prompts and task vectors, and read them back."""
