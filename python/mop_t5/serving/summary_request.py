"""Read and check a request for a summary."""

from collections.abc import Mapping

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from mop_t5.data.examples import Example, check_characters
from mop_t5.data.lines import json_value
from mop_t5.serving.adapters import Adapter
from mop_t5.serving.jobs import Job
from mop_t5.serving.limits import Limits
from mop_t5.serving.refusals import Refused, before

_BODY = "the body of the request"


class SummaryRequest(BaseModel):
    """The JSON object of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    scenario: str
    dialogue: str
    adapter: str | None = None
    num_beams: int = 1
    max_new_tokens: int | None = None
    stream: bool = False


async def read_request(request: Request, limits: Limits, end: float) -> SummaryRequest:
    """Return the content of a request.

    Args:
        request: The request.
        limits: The limits of a request.
        end: time.monotonic() at which the request must have arrived.

    Raises:
        Refused: The body is too long (413), too slow (408), no JSON (400) or has wrong fields (422).
        ClientDisconnect: The client left.
    """
    too_slow = Refused(408, f"{_BODY} did not arrive in time.", {"Connection": "close"})
    body = await before(end, _body(request, limits.max_body), too_slow)
    try:
        content = json_value(body.decode(), _BODY, "one JSON object in UTF-8")
    except UnicodeDecodeError as error:
        raise Refused(400, f"{_BODY} is not UTF-8 (byte {error.start}). Send one JSON object in UTF-8.") from None
    except ValueError as error:
        raise Refused(400, str(error)) from None
    if not isinstance(content, dict):
        raise Refused(422, f"{_BODY} must be a JSON object; got {type(content).__name__}.")
    try:
        return SummaryRequest.model_validate(content)
    except ValidationError as error:
        raise Refused(422, _of_fields(error)) from None


async def _body(request: Request, most: int) -> bytes:
    # the rest of a long body is not read
    refusal = Refused(413, f"{_BODY} has more than {most:,} bytes. Cut the dialogue.", {"Connection": "close"})
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise refusal
    return bytes(body)


def _of_fields(error: ValidationError) -> str:
    """Return a sentence on all fields that are wrong."""
    known = ", ".join(SummaryRequest.model_fields)
    said = []
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        name, kind = ".".join(map(str, one["loc"])), one["type"]
        problem = {"missing": "is missing", "extra_forbidden": f"is unknown (known: {known})"}.get(kind)
        said.append(f"{name[:60]!r} {problem or one['msg'].lower().replace('input should', 'must')}")
    return f"{'; '.join(said)}."


def job_of(asked: SummaryRequest, adapters: Mapping[str, Adapter], limits: Limits) -> Job:
    """Return the job that a request asks for.

    Raises:
        Refused: The adapter or the scenario is unknown (404), or a value is outside its limits (422).
    """
    name = next(iter(adapters)) if asked.adapter is None else asked.adapter
    if (adapter := adapters.get(name)) is None:
        raise Refused(404, f"no adapter {name[:60]!r}; known are {', '.join(adapters)}.")
    most = limits.max_new_tokens or adapter.max_new_tokens
    new_tokens = min(most, adapter.max_new_tokens) if asked.max_new_tokens is None else asked.max_new_tokens
    _check("num_beams", asked.num_beams, limits.max_beams)
    _check("max_new_tokens", new_tokens, most)
    if asked.stream and asked.num_beams > 1:
        raise Refused(422, "`stream` needs num_beams 1: a search with more beams knows no word before its end.")
    for field, text in {"scenario": asked.scenario, "dialogue": asked.dialogue}.items():
        try:
            check_characters(text, field)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        if not text.strip():
            raise Refused(422, f"`{field}` is empty. Fill it in.")
    if adapter.scenarios is not None and asked.scenario not in adapter.scenarios:
        known = ", ".join(adapter.scenarios)
        raise Refused(404, f"the adapter {name!r} has no scenario {asked.scenario[:60]!r}; known are {known}.")
    example = Example(asked.scenario, asked.dialogue, summary="", id="request")
    return Job(adapter, example, asked.num_beams, new_tokens)


def _check(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        got = value if abs(value) <= 2**31 else "more" if value > 0 else "less"
        raise Refused(422, f"`{name}` must be 1 to {most}; got {got}.")
