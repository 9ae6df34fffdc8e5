"""A call in two processes of one job on this machine, with the variables that torchrun sets."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable


def in_two_processes(call: Callable[[], object], patience: float = 0) -> None:
    """Call in two forks of this process. If one fails, the other, which would wait for it, is killed.

    patience: Seconds in which the other process may end by itself.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    team = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ.update({name: str(value) for name, value in {**team, "RANK": rank, "LOCAL_RANK": rank}.items()})
            status = 1
            try:
                call()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    failed = False
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failed:
            failed = True
            end = time.monotonic() + patience
            while time.monotonic() < end and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                time.sleep(0.05)
            for other in children:
                os.kill(other, signal.SIGKILL)  # without effect on a process that has ended
    assert not failed, "a process ended with an error"
