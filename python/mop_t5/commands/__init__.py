"""What the commands of `mop-t5` do: one file a command, in it a function of its name.

Its parameters are the flags and the keys of a configuration file, its docstring is the help. A parameter that is a
dataclass stands for all the fields of that class.
"""

from typing import Annotated

Words = Annotated[list[str], "positional"]  # one or more words without a flag
