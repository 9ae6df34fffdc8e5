"""The command line. Each command has a file with a function of its name."""

from typing import Annotated

Words = Annotated[list[str], "positional"]  # one or more words without a flag
Repeated = Annotated[list[str], "repeated"]  # a flag that may be given several times, once per text
