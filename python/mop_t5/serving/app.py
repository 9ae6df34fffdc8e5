"""The web application: summaries, adapters, health, metrics and a page to try it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mop_t5.serving.adapters import Adapter
from mop_t5.serving.batcher import Batcher
from mop_t5.serving.jobs import Answer, Job
from mop_t5.serving.limits import Limits
from mop_t5.serving.metrics import Metrics
from mop_t5.serving.refusals import Refused, before
from mop_t5.serving.summary_request import SummaryRequest, job_of, read_request

_LEFT = 499  # the status of a client that left before its answer, as in the logs of nginx
_PAGE = Path(__file__).with_name("page.html")
# the page loads nothing, and talks to this server only
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# no browser guesses another type of an answer, and no answer is shown to the page of another site or kept
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_JSON_LINES = "application/x-ndjson; charset=utf-8"  # some clients guess where no charset is named


def make_app(adapters: Mapping[str, Adapter], batcher: Batcher) -> FastAPI:
    """Return the application.

    Args:
        adapters: The adapters by name. The first one answers requests that name none.
        batcher: Answers the jobs. Its limits are those of a request, and its metrics count the requests.
    """
    limits, metrics = batcher.limits, batcher.metrics
    # the documentation pages of FastAPI load their scripts from another host
    app = FastAPI(title="mop-t5 serve", docs_url=None, redoc_url=None)
    app.add_middleware(_Guard)
    app.add_exception_handler(HTTPException, _sentence)
    app.add_exception_handler(Exception, _failure)

    page = _PAGE.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def try_it() -> HTMLResponse:
        """Return a page on which the server can be tried."""
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """Return status 200 while requests are taken, and 503 while the server stops or after its thread died."""
        state = "stopping" if batcher.is_closed else "failed" if batcher.has_ended else "ready"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    async def metrics_page() -> Response:
        """Return the metrics in the text form of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/adapters")
    async def list_adapters() -> dict[str, Any]:
        """Return the adapters with their scenarios, and the limits of a request."""
        return {"adapters": [_described(one, limits) for one in adapters.values()], "max_beams": limits.max_beams}

    schema = {"requestBody": {"content": {"application/json": {"schema": SummaryRequest.model_json_schema()}}}}

    @app.post("/v1/summaries", openapi_extra=schema)
    async def summaries(request: Request) -> Response:
        """Return the summary of a dialogue, whole or as JSON lines."""
        started = time.monotonic()
        end = started + limits.timeout
        ends = partial(metrics.request, started=started)
        try:
            asked = await read_request(request, limits, end)
            job = job_of(asked, adapters, limits)
            stream = _Stream(job, end, metrics, started) if asked.stream else None
            batcher.submit(job)
            if stream is not None:
                return stream
            answer = await _answer(job, request, end)
        except Refused as refusal:
            ends(refusal.status)
            return refusal.response()
        except ClientDisconnect:
            ends(_LEFT)
            return Response(status_code=_LEFT)  # for the log: nobody reads it
        except Exception:
            ends(500)
            raise
        metrics.answer(job.adapter.name, answer)
        ends(200)
        return JSONResponse(_content(job, answer))

    return app


class _Guard:
    """Refuses what a page of another site sends through the browser of a person who can reach the server.

    It adds headers to every answer. It is no middleware of FastAPI's own kind, which hides that a client has left.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        app = self._app
        # every browser sends it, and no page can change it
        site = dict(scope.get("headers", [])).get(b"sec-fetch-site")
        if site in (b"cross-site", b"same-site") and scope["method"] not in ("GET", "HEAD"):
            app = Refused(403, "a page of another site may not ask this server. Use the page at /.").response()
        await app(scope, receive, sent)


async def _answer(job: Job, request: Request, end: float) -> Answer:
    """Return the answer of a job. Cancel the job if the time is over or the client leaves.

    Raises:
        Refused: The time is over, or the dialogue cannot be summarised.
        ClientDisconnect: The client left.
    """
    answer = asyncio.wrap_future(job.answer)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        both: set[asyncio.Future[Any]] = {answer, left}
        await before(end, asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED), _too_late())
        if not answer.done():
            raise ClientDisconnect
        return _result(answer)
    finally:
        left.cancel()
        job.answer.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client has left. The body of the request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _result(answer: asyncio.Future[Answer] | Future[Answer]) -> Answer:
    """Return the result of a future that is done. Raise Refused with status 500 if it is an error."""
    try:
        return answer.result()
    except Exception as error:
        raise Refused(500, "the dialogue could not be summarised. The log of the server says why.") from error


def _too_late() -> Refused:
    return Refused(504, "the summary was not ready in time. Try again later, or ask for fewer tokens or beams.")


class _Stream(StreamingResponse):
    """JSON lines: the pieces of a summary, then the answer or an error. The job ends if the client leaves.

    Make it before the job is submitted, so that it gets every piece.
    """

    def __init__(self, job: Job, end: float, metrics: Metrics, started: float):
        super().__init__(self._lines(), media_type=_JSON_LINES, headers={"X-Accel-Buffering": "no"})
        self._job, self._end, self._metrics, self._started, self._status = job, end, metrics, started, _LEFT
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None is the end
        self._loop = asyncio.get_running_loop()
        job.on_piece = self._put
        job.answer.add_done_callback(lambda _: self._put(None))

    def _put(self, piece: str | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # a client may leave before the first line is asked for
            self._job.answer.cancel()
            self._metrics.request(self._status, self._started)

    async def _lines(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await before(self._end, self._pieces.get(), _too_late())) is not None:
                yield _line({"text": piece})
            answer = _result(self._job.answer)
        except Refused as refusal:
            self._status = refusal.status
            yield _line(refusal.content | {"status": refusal.status})
            return
        self._metrics.answer(self._job.adapter.name, answer)
        self._status = 200
        yield _line(_content(self._job, answer))


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _content(job: Job, answer: Answer) -> dict[str, Any]:
    return {
        "summary": answer.summary,
        "truncated": answer.truncated,
        "scenario": job.example.scenario,
        "adapter": job.adapter.name,
    }


def _described(adapter: Adapter, limits: Limits) -> dict[str, Any]:
    described = {field: getattr(adapter, field) for field in ("name", "method", "scenarios", "max_source")}
    return described | {"max_new_tokens": limits.max_new_tokens or adapter.max_new_tokens}


async def _sentence(request: Request, error: Exception) -> Response:
    """Return the answer to an unknown address or a wrong method."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {HTTPStatus(error.status_code).phrase}."
    return JSONResponse({"error": said}, error.status_code, headers=error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    """Return the answer to a request at which the server failed. uvicorn logs the error."""
    return JSONResponse({"error": "the server failed. Its log says why."}, 500)
