"""Load a running `mop-t5 serve`, and compare every answer with the known right answer. A locustfile.

    mop-t5 generate --run RUN --input dialogues.jsonl --output answers.jsonl
    MOP_LOAD_INPUT=dialogues.jsonl MOP_LOAD_ANSWERS=NAME=answers.jsonl \
        locust -f benchmarks/serve_load.py --headless --host http://127.0.0.1:8000 --users 16 --run-time 30s

NAME is the adapter's name. Further adapters follow after commas. Without MOP_LOAD_RATE every user sends its next
request as soon as it has an answer: as many users as fit into a few batches measure the rate that the server can serve.
MOP_LOAD_RATE=40 sends 40 requests per second, whatever the server answers. It needs at least as many users as the rate
times the seconds of the slowest answer.

A refusal (429 with Retry-After) is no failure. A wrong summary, another status or a lost connection is a failure, and
locust then exits with 1. At the end it prints the counts, and those of the server's /metrics. "sent" is the sum of the
statuses and of "ended", which are users that locust ended before their request was on its way.
"""

import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gevent import GreenletExit
from locust import FastHttpUser, constant, constant_throughput, events, task

_RATE = float(os.environ.get("MOP_LOAD_RATE", 0))
_PLACE = "/v1/summaries"
_TIMEOUT = 120.0  # seconds, above the timeout of the server: without an answer by then a request is lost


def _rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]


def _cases() -> list[tuple[dict[str, Any], str]]:
    """Return requests with their right summaries."""
    dialogues, cases = _rows(os.environ["MOP_LOAD_INPUT"]), []
    for part in os.environ["MOP_LOAD_ANSWERS"].split(","):
        adapter, _, path = part.partition("=")
        for row, answer in zip(dialogues, _rows(path), strict=True):
            asked = {"scenario": row["scenario"], "dialogue": row["dialogue"], "adapter": adapter}
            cases.append((asked, answer["summary"]))
    return cases


_CASES = _cases()
_COUNTS: Counter[str] = Counter()


class Client(FastHttpUser):
    """A client that sends a random request again and again. Every third request is streamed."""

    network_timeout = connection_timeout = _TIMEOUT

    def wait_time(self) -> float:
        """Return the seconds until the next request."""
        users = self.environment.runner.target_user_count
        wait = constant_throughput(_RATE / users) if _RATE else constant(0)
        return wait(self)

    @task
    def summarise(self) -> None:
        """Send a request, and check the answer."""
        asked, right = random.choice(_CASES)
        stream = random.random() < 1 / 3
        _COUNTS["sent"] += 1
        try:
            self._send(asked | {"stream": stream}, right)
        except GreenletExit:  # locust ends users that were about to send when the time is over
            _COUNTS["ended"] += 1
            raise

    def _send(self, asked: dict[str, Any], right: str) -> None:
        with self.client.post(_PLACE, json=asked, catch_response=True) as answer:
            status = answer.status_code
            _COUNTS[str(status)] += 1
            if status == 429 and int(answer.headers.get("Retry-After", 0)) >= 1:
                answer.request_meta["name"] = "refused"
                answer.success()
                return
            if status != 200:
                answer.failure(f"status {status}")
                return
            *pieces, last = [json.loads(line) for line in answer.content.decode().split("\n") if line]
            whole = "".join(piece["text"] for piece in pieces) if asked["stream"] else right
            if (last.get("summary"), last.get("adapter"), whole) == (right, asked["adapter"], right):
                _COUNTS["right"] += 1
                answer.success()
            else:
                _COUNTS["wrong"] += 1
                answer.failure("a wrong summary")


@events.test_stop.add_listener
def report(environment: Any, **_: Any) -> None:
    """Print the counts, and the server's own counts."""
    from urllib.request import urlopen

    seconds = environment.stats.total.last_request_timestamp - environment.stats.total.start_time
    served = environment.stats.get(_PLACE, "POST")
    times = {f"p{share * 100:.0f}_ms": served.get_response_time_percentile(share) for share in (0.5, 0.95, 0.99)}
    rates = {"sent_per_second": _COUNTS["sent"] / seconds, "served_per_second": _COUNTS["right"] / seconds}
    print(json.dumps(dict(_COUNTS) | times | {name: round(rate, 1) for name, rate in rates.items()}))

    with urlopen(f"{environment.host}/metrics") as page:
        text = page.read().decode()
    print(dict(re.findall(r'^mop_t5_requests_total\{status="(\d+)"\} (\S+)', text, re.MULTILINE)))
