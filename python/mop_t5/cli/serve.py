"""Answer requests for summaries over HTTP: `mop-t5 serve`."""

from mop_t5.checks import check_int
from mop_t5.cli import Repeated
from mop_t5.serving.limits import Limits


def serve(
    limits: Limits,
    run: Repeated,
    host: str = "127.0.0.1",
    port: int = 8000,
    backbone: str | None = None,
) -> int:
    """Answer requests for summaries over HTTP.

    POST /v1/summaries takes {"scenario": ..., "dialogue": ...} and returns {"summary": ..., "truncated": ...}. A page
    to try it is at /, the adapters are at /v1/adapters, the health is at /healthz, and metrics in the form of
    Prometheus are at /metrics. SIGTERM or Ctrl-C: the server refuses new requests, answers all others, and exits with
    0. There is neither encryption nor a password: put a proxy that has both before it.

      mop-t5 serve --run runs/mop
      mop-t5 serve --run runs/mop --run short=runs/mop-short --port 8080 --batch_size 32

    Args:
        limits: the limits.
        run: folder that `mop-t5 train` wrote. Its name, or NAME in NAME=FOLDER, is the `adapter` of a request. The flag
            can be repeated; the first run answers requests without `adapter`.
        host: address to serve on; 0.0.0.0 for all addresses of this machine.
        port: port to serve on; 0 for any free port.
        backbone: folder of the backbone, if it has moved since the runs.
    """
    check_int("port", port, 0)
    if port >= 2**16:
        raise ValueError(f"port must be at most {2**16 - 1}; got {port}.")
    try:
        from mop_t5.serving.server import Server, bound_socket
    except ModuleNotFoundError as error:
        raise ImportError(f"serve needs the package {error.name}. pip install 'mop-kernels[serve]'") from error
    from mop_t5.serving.adapters import load_adapters

    with bound_socket(host, port) as listener:  # before the models are loaded, which takes long
        Server(load_adapters(run, backbone), limits).run([listener])
    return 0
