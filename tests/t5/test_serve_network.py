"""mop-t5 serve on a real socket: clients that leave or are slow, and the end of the server."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress

import httpx2
import pytest
from errors import raises
from mop_t5.cli.main import main
from mop_t5.serving.limits import Limits
from mop_t5.serving.server import Server, bound_socket
from serving_fixtures import DEADLINE, adapters, gate, runs, until

__all__ = ["adapters", "gate", "runs"]  # fixtures
BODY = {"scenario": "taxi", "dialogue": "用户：司机绕路了。"}


@contextmanager
def serving(adapters, **fields):
    """Yield a server that runs in a thread, and a client of it. It is stopped at the end."""
    with bound_socket("127.0.0.1", 0) as listener:
        server = Server(adapters, Limits(max_wait=0.0, **fields))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        until(lambda: server.started)
        with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=DEADLINE) as client:
            yield server, client
        server.handle_exit(signal.SIGTERM)
        thread.join(DEADLINE)
        assert not thread.is_alive()


def send(client, head="", **fields):
    """Send a request on a connection of its own, and return the socket."""
    body = json.dumps(BODY | fields).encode()
    head = head or f"POST /v1/summaries HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    one = socket.create_connection((client.base_url.host, client.base_url.port))
    one.settimeout(DEADLINE)
    one.sendall(head.encode() + body)
    return one


def received(one, until=None):
    """Return what a socket receives up to its end, or up to the last byte of an answer with a summary."""
    answer = b""
    while part := one.recv(10_000):
        answer += part
        if until is not None and b'"summary"' in answer and answer.rstrip().endswith((until, b"0")):
            break
    one.close()
    return answer


def count_of(client, status):
    """Return the line of a metric."""
    lines = client.get("/metrics").text.splitlines()
    return next((line for line in lines if line.startswith(f'mop_t5_requests_total{{status="{status}"}}')), "")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(adapters, gate, stream):
    with serving(adapters, max_queue=1) as (server, client):
        running = send(client, stream=stream)
        gate.wait()
        waiting = send(client, stream=stream)
        until(lambda: server.batcher.waiting == 1)
        assert client.post("/v1/summaries", json=BODY).status_code == 429
        waiting.close()
        until(lambda: server.batcher.waiting == 0)
        again = send(client, stream=stream)
        until(lambda: server.batcher.waiting == 1)
        running.close()
        until(lambda: count_of(client, 499).endswith(" 2.0"))
        gate.open.set()
        assert b'"summary"' in received(again, until=b"}")
        assert len(gate.batches) == 2
        assert client.post("/v1/summaries", json=BODY).status_code == 200


def test_words_of_a_stream_arrive_before_its_end(adapters, gate, monkeypatch):
    """The second word is generated only after the client has read the first."""
    from mop_t5.serving import jobs

    read, real = threading.Event(), jobs.Job.send

    def send_then_wait(job, piece):
        real(job, piece)
        if piece.strip():
            assert read.wait(DEADLINE)

    monkeypatch.setattr(jobs.Job, "send", send_then_wait)
    gate.open.set()
    with (
        serving(adapters) as (_, client),
        client.stream("POST", "/v1/summaries", json=BODY | {"stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines))["text"]
        read.set()
        assert json.loads(list(lines)[-1])["adapter"] == "mop"


def test_a_body_that_does_not_come_is_given_up(adapters):
    with serving(adapters, timeout=0.3) as (_, client):
        one = send(client, head="POST /v1/summaries HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = received(one)
        assert answer.startswith(b"HTTP/1.1 408")
        assert "error" in json.loads(answer.split(b"\r\n\r\n")[1])


def test_more_connections_than_the_limit_are_refused(adapters):
    with serving(adapters, max_connections=3) as (_, client):
        address = client.base_url.host, client.base_url.port
        held = [socket.create_connection(address) for _ in range(3)]
        until(lambda: httpx2.get(client.base_url.join("/healthz")).status_code == 503)
        for one in held:
            one.close()
        until(lambda: httpx2.get(client.base_url.join("/healthz")).status_code == 200)
        assert "server" not in httpx2.get(client.base_url.join("/healthz")).headers


def test_a_stop_answers_what_was_accepted_and_refuses_more(adapters, gate):
    with serving(adapters) as (server, client):
        running = send(client)
        gate.wait()
        waiting = send(client, stream=True)
        until(lambda: server.batcher.waiting == 1)
        server.handle_exit(signal.SIGTERM)
        until(lambda: server.batcher.is_closed)
        health = client.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
        refused = client.post("/v1/summaries", json=BODY)
        assert refused.status_code == 503
        assert "error" in refused.json()
        gate.open.set()
        for one in (running, waiting):
            answer = received(one, until=b"}")
            assert answer.startswith(b"HTTP/1.1 200")
            assert b'"summary"' in answer


def test_the_address_must_be_free():
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with raises(OSError, "127.0.0.1", str(port), "--port"):
            bound_socket("127.0.0.1", port)


@pytest.mark.slow
def test_the_command_ends_with_0_and_needs_no_kernels_for_a_fixed_prefix(runs, tmp_path, forks_with_t5):
    fixed = tmp_path / "fixed"
    assert main(["export", "--run", runs[0], "--output", str(fixed)]) == 0
    with bound_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    code = f"""
from mop_t5.cli.main import main
code = main(["serve", "--run", {str(fixed)!r}, "--port", "{port}"])
print("code", code, "kernels", "mop_kernels" in sys.modules)
"""
    process = forks_with_t5.begin(code)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as client:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            with suppress(httpx2.TransportError):
                assert client.get("/healthz").json() == {"status": "ready"}
                break
            time.sleep(0.02)
        assert client.post("/v1/summaries", json=BODY).json()["adapter"] == "fixed"
    os.kill(process, signal.SIGTERM)
    said = forks_with_t5.end()
    assert said.splitlines()[-1] == "code 0 kernels False"
    assert f"http://127.0.0.1:{port} " in said
    assert "Traceback" not in said
