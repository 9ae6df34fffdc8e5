"""Read and write adapter folders, prompt libraries and task vectors."""
