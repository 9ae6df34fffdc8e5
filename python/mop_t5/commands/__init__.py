"""What the commands of `mop-t5` do: one file a command, one function in it.

Its parameters are the flags and the keys of a configuration file, its docstring is the help. A parameter that is a
dataclass stands for all the fields of that class.
"""

from mop_t5.commands.demo import demo
from mop_t5.commands.evaluate import evaluate
from mop_t5.commands.generate import generate
from mop_t5.commands.params import params
from mop_t5.commands.train import train

__all__ = ["demo", "evaluate", "generate", "params", "train"]
