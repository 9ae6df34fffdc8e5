"""The tables of the MOP paper: its systems run on a corpus, counted, and set beside its own numbers."""
