"""For tests that kill processes: a process forked from this one, and moments at which it kills itself."""

import os
import signal


def kill_now(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name, count):
    """Kill this process when owner.name is called for the count-th time."""
    real, calls = getattr(owner, name), iter(range(1, 10_000))

    def watched(*arguments, **keywords):
        if next(calls) == count:
            kill_now()
        return real(*arguments, **keywords)

    setattr(owner, name, watched)


def in_a_process(function):
    """Call function, which returns an exit code, in a process of its own; its exit code, or minus its signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
