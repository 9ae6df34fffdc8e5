"""The command line: one file per command, in it a function of the command's name."""

from typing import Annotated

Words = Annotated[list[str], "positional"]  # one or more words without a flag
