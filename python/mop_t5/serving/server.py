"""Run the application under uvicorn until a signal stops it."""

import logging
import signal
import socket
from collections.abc import Mapping
from types import FrameType

import uvicorn

from mop_t5.serving.adapters import Adapter
from mop_t5.serving.app import make_app
from mop_t5.serving.batcher import Batcher
from mop_t5.serving.limits import Limits

_LAST_LINES = 10  # seconds in which clients may take their answers after the last summary
_LOG = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """A server that answers all accepted requests after a signal, and refuses further requests with status 503.

    Args:
        adapters: The adapters by name.
        limits: The limits of the server.
    """

    def __init__(self, adapters: Mapping[str, Adapter], limits: Limits):
        self.batcher = Batcher(limits)
        config = uvicorn.Config(
            make_app(adapters, self.batcher),
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=_LAST_LINES,
            limit_concurrency=limits.max_connections,
            server_header=False,
        )
        super().__init__(config)
        self._stop = False

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Stop after the accepted requests. A second signal stops at once."""
        if self._stop:
            self.force_exit = self.should_exit = True
        self._stop = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop. uvicorn calls this ten times per second."""
        if self._stop and not self.batcher.is_closed:
            _LOG.info("Stopping: %d requests wait for their answers", self.batcher.waiting)
            self.batcher.close()
        if self.batcher.is_closed and self.batcher.has_ended:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the addresses."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            _LOG.info("Serving on http://%s:%d (Ctrl-C stops)", f"[{host}]" if ":" in host else host, port)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on bound sockets until SIGINT or SIGTERM, and return."""
        before = {sig: signal.signal(sig, lambda *_: None) for sig in uvicorn.server.HANDLED_SIGNALS}
        try:
            super().run(sockets)  # raises the signals again when it has ended
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address. It does not listen yet.

    Raises:
        OSError: The address does not exist here, is in use or is not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(error.errno, f"host {host!r} is no address of this machine: {error.strerror}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        said = f"{host}, port {port}, cannot be served on: {error.strerror}. Choose another --port or --host."
        raise OSError(error.errno, said) from None
    return listener
