"""Load, build, identify and tokenise for a T5 backbone."""
