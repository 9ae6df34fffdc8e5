"""The demo: a backbone, a corpus and a tuned method in a few minutes on a CPU."""
