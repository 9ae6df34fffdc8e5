"""Scripts in processes that share one slow import: each runs in a fork of a process that has imported already."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HELPERS = Path(__file__).parent
_SERVER = """
import json, os, sys
for line in sys.stdin:
    code, environment = json.loads(line)
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.environ.update(environment)
        status = 1
        try:
            exec(code, globals())
            sys.stdout.flush()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(status)
    os.close(sink)
    print(child, flush=True)
    with open(source) as said:
        answer = said.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), answer]), flush=True)
"""


class Forks:
    """A process that has run `start`, and forks once for each script."""

    def __init__(self, server: subprocess.Popen):
        self._server = server

    def begin(self, code: str, **variables: str) -> int:
        """Start `code` with environment variables, and return the id of its process. `end` comes before the next."""
        print(json.dumps([code, variables]), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def end(self) -> str:
        """Return what the script wrote to stdout and stderr when it has ended. It must not have raised an exception."""
        status, said = json.loads(self._server.stdout.readline())
        assert status == 0, said[-3000:]
        return said.strip()

    def run(self, code: str, **variables: str) -> str:
        """Return what `code` writes."""
        self.begin(code, **variables)
        return self.end()


@contextmanager
def forks_of(start: str, environment: Mapping[str, str] = os.environ) -> Iterator[Forks]:
    """Yield the forks of a process that has run `start`, such as `import torch`: what all scripts may share."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n{start}{_SERVER}"]
    with subprocess.Popen(
        command, cwd=HELPERS.parents[1], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        yield Forks(server)
        server.stdin.close()
