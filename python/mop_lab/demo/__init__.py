"""Show the library at work: a backbone, a corpus and tuned methods in a few minutes on a CPU."""
