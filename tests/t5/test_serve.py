"""mop-t5 serve: answers, batches, streams, limits and adapters, by requests to the application."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mop_t5
import pytest
import torch
from errors import raises, says
from fastapi.testclient import TestClient
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus
from mop_t5.serving import jobs as jobs_module
from mop_t5.serving.adapters import load_adapters, share_weights
from mop_t5.serving.app import make_app
from mop_t5.serving.batcher import Batcher
from mop_t5.serving.jobs import Job, summarise
from mop_t5.serving.limits import Limits
from prometheus_client.parser import text_string_to_metric_families
from serving_fixtures import DEADLINE, adapters, gate, runs, until

__all__ = ["adapters", "gate", "runs"]  # fixtures
ROWS = synthetic_corpus(3, general=1, train=1, valid=1, test=60)["test"]
ROWS = [row for row in ROWS if row.scenario in ("taxi", "food", "ticket")][:12]
LONG = "用户：司机绕路了。" * 60


@pytest.fixture(scope="module")
def known(runs, tmp_path_factory):
    """The summaries of `mop-t5 generate` by adapter, beams and dialogue."""
    folder = tmp_path_factory.mktemp("known")
    lines = [json.dumps({"scenario": row.scenario, "dialogue": row.dialogue}) for row in ROWS]
    (folder / "in.jsonl").write_text("\n".join(lines))
    found = {}
    for name, run in (("mop", runs[0]), ("prompt", runs[1].partition("=")[2])):
        for beams in (1, 2):
            output = folder / f"{name}-{beams}.jsonl"
            command = ["generate", "--run", run, "--input", str(folder / "in.jsonl"), "--output", str(output)]
            assert main([*command, "--num_beams", str(beams)]) == 0
            texts = [json.loads(line)["summary"] for line in output.read_text().split("\n")[:-1]]
            found |= {(name, beams, row.dialogue): text for row, text in zip(ROWS, texts)}
    assert len({found["mop", 1, row.dialogue] for row in ROWS}) > 5
    assert all(found["mop", 1, row.dialogue] != found["prompt", 1, row.dialogue] for row in ROWS)
    return found


class Served:
    """A client of the application, and the batcher behind it."""

    def __init__(self, client, batcher):
        self.client, self.batcher = client, batcher
        self.pool = ThreadPoolExecutor(16)

    def post(self, row=ROWS[0], **fields):
        return self.client.post("/v1/summaries", json={"scenario": row.scenario, "dialogue": row.dialogue, **fields})

    def later(self, row=ROWS[0], **fields):
        return self.pool.submit(self.post, row, **fields)

    def waits_for(self, count):
        until(lambda: self.batcher.waiting == count)

    def metrics(self):
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {(one.name, *one.labels.values()): one.value for one in samples}


@contextmanager
def serving(adapters, **fields):
    batcher = Batcher(Limits(**fields))
    with TestClient(make_app(adapters, batcher)) as client:
        served = Served(client, batcher)
        yield served
        served.pool.shutdown()
    batcher.close()
    until(lambda: batcher.has_ended)


@pytest.fixture
def served(adapters):
    with serving(adapters, max_wait=0.0) as served:
        yield served


def lines_of(answer):
    assert answer.headers["content-type"] == "application/x-ndjson; charset=utf-8"
    return [json.loads(line) for line in answer.text.split("\n")[:-1]]


def test_the_answers_are_those_of_generate_and_are_never_mixed(adapters, known):
    """All requests of two adapters and two searches at once, with wrong requests between them."""
    with serving(adapters, batch_size=5, max_wait=20.0) as served:
        asked = [(row, name, beams) for row in ROWS for name in adapters for beams in (1, 2)]
        answers = [served.later(row, adapter=name, num_beams=beams) for row, name, beams in asked]
        wrong = [served.later(adapter="nobody") for _ in range(5)]
        for (row, name, beams), answer in zip(asked, answers):
            expected = {"summary": known[name, beams, row.dialogue], "truncated": False}
            assert answer.result().json() == expected | {"scenario": row.scenario, "adapter": name}
        assert {answer.result().status_code for answer in wrong} == {404}
        metrics = served.metrics()
        assert metrics["mop_t5_requests_total", "200"] == metrics["mop_t5_request_seconds_count",] == len(asked)
        assert metrics["mop_t5_requests_total", "404"] == 5
        assert metrics["mop_t5_batch_size_sum",] == len(asked)
        assert metrics["mop_t5_batch_size_count",] < len(asked)


def test_what_waits_shares_a_batch_if_model_and_search_are_the_same(adapters, known, gate):
    with serving(adapters, batch_size=3, max_wait=0.0) as served:
        kinds = [("mop", 1), ("mop", 1), ("prompt", 1), ("mop", 2), ("mop", 1), ("mop", 1), ("mop", 1)]
        answers = []
        for number, (name, beams) in enumerate(kinds):
            answers.append(served.later(ROWS[number], adapter=name, num_beams=beams))
            gate.wait() if number == 0 else served.waits_for(number)
        gate.open.set()
        texts = [answer.result().json()["summary"] for answer in answers]
        numbers = {row.dialogue: number for number, row in enumerate(ROWS)}
        assert [[numbers[one] for one in batch] for batch in gate.batches] == [[0], [1, 4, 5], [2], [3], [6]]
        assert texts == [known[name, beams, row.dialogue] for (name, beams), row in zip(kinds, ROWS)]


def test_a_request_waits_for_others_for_a_moment_only(adapters, gate):
    gate.open.set()
    with serving(adapters, batch_size=2, max_wait=1000.0 * DEADLINE, timeout=DEADLINE) as served:
        pair = [served.later(ROWS[0]), served.later(ROWS[1])]  # a full batch does not wait
        assert [answer.result().status_code for answer in pair] == [200, 200]
        assert sorted(map(len, gate.batches)) == [2]
    with serving(adapters, batch_size=2, max_wait=1.0) as served:
        assert served.post().status_code == 200


def test_a_stream_gives_the_words_and_then_the_whole(served, known, gate):
    first = served.later(ROWS[0], stream=True)
    gate.wait()
    more = [served.later(row, stream=number < 2) for number, row in enumerate(ROWS[1:4])]
    served.waits_for(3)
    gate.open.set()
    streams = [lines_of(answer.result()) for answer in (first, *more[:2])]
    assert len(gate.batches) == 2  # a batch of streams and whole answers
    assert more[2].result().json()["summary"] == known["mop", 1, ROWS[3].dialogue]
    for row, (*pieces, last) in zip(ROWS, streams):
        assert "".join(piece["text"] for piece in pieces) == known["mop", 1, row.dialogue] == last.pop("summary")
        assert last == {"truncated": False, "scenario": row.scenario, "adapter": "mop"}
    assert max(len(lines) for lines in streams) > 2
    assert served.metrics()["mop_t5_requests_total", "200"] == 4


def test_the_end_of_a_long_dialogue_is_cut_and_said(served, adapters):
    row = ROWS[0]
    answer = served.client.post("/v1/summaries", json={"scenario": row.scenario, "dialogue": LONG}).json()
    assert answer["truncated"] is True
    cut = mop_t5.evaluation.generate_summaries(
        adapters["mop"].model,
        adapters["mop"].tokenizer,
        [mop_t5.data.Example(row.scenario, LONG, "", "x")],
        max_source=100,
        max_new_tokens=6,
    )
    assert [answer["summary"]] == cut
    metrics = served.metrics()
    assert metrics["mop_t5_dialogue_tokens_total", "mop"] == 100
    assert 1 <= metrics["mop_t5_generated_tokens_total", "mop"] <= 6


def test_an_excess_is_refused_and_everything_accepted_is_answered(adapters, known, gate):
    with serving(adapters, batch_size=2, max_queue=3, max_wait=0.0) as served:
        accepted = [served.later(ROWS[0])]
        gate.wait()
        for number in (1, 2, 3):
            accepted.append(served.later(ROWS[number]))
            served.waits_for(number)
        for stream in (False, True):
            refused = served.post(ROWS[4], stream=stream)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            says(refused.json()["error"], "queue", "full")
        assert served.metrics()["mop_t5_queue_depth",] == 3
        assert served.client.get("/healthz").json() == {"status": "ready"}
        gate.open.set()
        texts = [answer.result().json()["summary"] for answer in accepted]
        assert texts == [known["mop", 1, row.dialogue] for row in ROWS[:4]]
        assert served.post(ROWS[4]).json()["summary"] == known["mop", 1, ROWS[4].dialogue]
        assert served.metrics()["mop_t5_requests_total", "429"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_given_up(adapters, known, gate, stream):
    with serving(adapters, timeout=0.8, max_wait=0.0) as served:
        running = served.later(ROWS[0], stream=stream)
        gate.wait()
        waiting = served.later(ROWS[1], stream=stream)
        for late in (running.result(), waiting.result()):
            content = lines_of(late)[-1] if stream else late.json()
            assert (content["status"] if stream else late.status_code) == 504
            says(content["error"], "in time")
        served.waits_for(0)  # its place is free
        gate.open.set()
        until(lambda: served.metrics()["mop_t5_requests_total", "504"] == 2)
    with serving(adapters) as served:
        assert served.post(ROWS[2]).json()["summary"] == known["mop", 1, ROWS[2].dialogue]
    assert [ROWS[1].dialogue] not in gate.batches


@pytest.mark.parametrize("stream", [False, True])
def test_a_dialogue_that_fails_fails_alone(served, known, gate, monkeypatch, stream, caplog):
    held = jobs_module.generate_summaries

    def faulty(model, tokenizer, examples, **keywords):
        made = held(model, tokenizer, examples, **keywords)  # words of a stream are on their way
        if any(example.dialogue == ROWS[2].dialogue for example in examples):
            raise RuntimeError("out of luck")
        return made

    monkeypatch.setattr(jobs_module, "generate_summaries", faulty)
    answers = [served.later(ROWS[0], stream=stream)]
    gate.wait()
    answers += [served.later(row, stream=stream) for row in ROWS[1:4]]
    served.waits_for(3)
    gate.open.set()
    found = [answer.result() for answer in answers]
    contents = [lines_of(one)[-1] if stream else one.json() for one in found]
    assert [one["status"] if "error" in one and stream else one.get("summary") for one in contents] == [
        known["mop", 1, row.dialogue] if row is not ROWS[2] else (500 if stream else None) for row in ROWS[:4]
    ]
    assert [one.status_code for one in found] == [200, 200, 200 if stream else 500, 200]
    assert "out of luck" not in contents[2]["error"]
    assert "out of luck" in caplog.text
    if stream:  # words are not sent again with the second attempt
        assert ["".join(line.get("text", "") for line in lines_of(found[number])) for number in (1, 3)] == [
            known["mop", 1, ROWS[number].dialogue] for number in (1, 3)
        ]
    assert served.post(ROWS[5]).json()["summary"] == known["mop", 1, ROWS[5].dialogue]


def test_a_cancelled_job_generates_no_further_token(adapters):
    def job(row, on_piece=None):
        return Job(adapters["mop"], row, 1, 40, on_piece)

    alone = [summarise([job(row)])[0] for row in ROWS[:3]]
    assert alone[0].steps > 5
    jobs = [job(row) for row in ROWS[:3]]
    jobs[1].on_piece = lambda piece: jobs[0].answer.cancel()
    left, *others = summarise(jobs)
    assert others == alone[1:]
    assert left.steps < alone[0].steps


GOOD = {"scenario": "taxi", "dialogue": "用户：你好"}
WRONG = [
    (b"not JSON", 400, ["JSON"]),
    (b'{"scenario": "taxi"', 400, ["JSON"]),
    (b"", 400, ["JSON"]),
    (b"\xff\xfe", 400, ["UTF-8"]),
    (b"[" * 100_000, 400, ["JSON"]),
    (b'{"scenario": "taxi", "scenario": "food", "dialogue": "x"}', 400, ["scenario"]),
    (b"[1]", 422, ["object", "list"]),
    ({"scenario": "taxi"}, 422, ["dialogue", "missing"]),
    ({"dialogue": "x"}, 422, ["scenario", "missing"]),
    (GOOD | {"dialogue": " \n"}, 422, ["dialogue", "empty"]),
    (GOOD | {"dialogue": 3}, 422, ["dialogue", "string"]),
    (GOOD | {"scenario": None}, 422, ["scenario", "string"]),
    (GOOD | {"dialogue": ["a", "b"]}, 422, ["dialogue", "string"]),
    (b'{"scenario": "taxi", "dialogue": "\\ud800"}', 422, ["dialogue"]),
    (b'{"scenario": "taxi", "dialogue": "x", "\\ud800": 1}', 422, ["string"]),
    (GOOD | {"stream": 1}, 422, ["stream", "boolean"]),
    (GOOD | {"num_beams": True}, 422, ["num_beams", "integer"]),
    (GOOD | {"num_beams": 0}, 422, ["num_beams", "1", "4", "0"]),
    (GOOD | {"num_beams": 5}, 422, ["num_beams", "1", "4", "5"]),
    (GOOD | {"num_beams": 10**40}, 422, ["num_beams", "1", "4"]),
    (GOOD | {"max_new_tokens": 7}, 422, ["max_new_tokens", "1", "6", "7"]),
    (GOOD | {"max_new_tokens": 1.5}, 422, ["max_new_tokens", "integer"]),
    (GOOD | {"stream": True, "num_beams": 2}, 422, ["stream", "num_beams"]),
    (b'{"scenario": "taxi", "dialogue": "x", "num_beams": NaN}', 422, ["num_beams", "integer"]),
    (b'{"scenario": "taxi", "dialogue": "x", "num_beams": 1e999}', 422, ["num_beams", "integer"]),
    (b'{"scenario": "taxi", "dialogue": "x", "max_new_tokens": ' + b"9" * 3000 + b"}", 422, ["max_new_tokens", "1"]),
    (GOOD | {"max_new_tokens": -(10**40)}, 422, ["max_new_tokens", "1", "6"]),
    (GOOD | {"scenario": ["taxi"] * 500}, 422, ["scenario", "string"]),
    (b'{"a":' * 600 + b"1" + b"}" * 600, 400, ["JSON"]),
    (GOOD | {"temperature": 1}, 422, ["temperature", "known", "num_beams"]),
    (GOOD | {"scenario": "metro"}, 404, ["mop", "metro", "food, taxi, ticket"]),
    (GOOD | {"adapter": "nobody"}, 404, ["nobody", "mop, prompt"]),
    (GOOD | {"dialogue": "x" * 5000}, 413, ["4,096"]),
]


def test_wrong_requests_are_refused_in_a_sentence(adapters):
    with serving(adapters, max_body=4096) as served:
        for content, status, parts in WRONG:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            if len(body) > 4096:
                body, status, parts = body, 413, ["4,096"]
            answer = served.client.post("/v1/summaries", content=body)
            assert (answer.status_code, list(answer.json())) == (status, ["error"]), body[:80]
            says(answer.json()["error"], *parts)
            assert answer.json()["error"].endswith(".")
        chunks = (b"x" * 1000 for _ in range(10))  # without a length in its header
        assert served.client.post("/v1/summaries", content=chunks).status_code == 413
        assert served.client.get("/v1/summaries").json() == {"error": "GET /v1/summaries: Method Not Allowed."}
        assert served.client.get("/docs").status_code == 404  # it would load scripts of another host
        assert served.client.post("/v1/summaries", json=GOOD | {"max_new_tokens": 1}).status_code == 200


def test_pages_of_other_sites_are_refused(served):
    for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200}.items():
        answer = served.client.post("/v1/summaries", json=GOOD, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status
    assert "error" in served.client.post("/", headers={"Sec-Fetch-Site": "cross-site"}).json()
    link = served.client.get("/", headers={"Sec-Fetch-Site": "cross-site"})
    assert link.status_code == 200
    assert "frame-ancestors 'none'" in link.headers["content-security-policy"]
    for address in ("/", "/v1/adapters", "/no/such"):
        headers = served.client.get(address).headers
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


@pytest.mark.parametrize(
    "address", ["/../run.json", "/%2e%2e/run.json", "/v1/adapters/..%2f..%2fetc%2fpasswd", "//etc/passwd"]
)
def test_no_address_leads_to_a_file(served, address):
    assert served.client.get(address).status_code == 404


def test_the_adapters_and_the_page(served, adapters):
    listed = served.client.get("/v1/adapters").json()
    assert listed["max_beams"] == 4
    assert [(one["name"], one["method"], one["scenarios"]) for one in listed["adapters"]] == [
        ("mop", "mop", ["food", "taxi", "ticket"]),
        ("prompt", "prompt_tuning", None),
    ]
    assert {(one["max_source"], one["max_new_tokens"]) for one in listed["adapters"]} == {(100, 6)}
    page = served.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace(" // ", "").replace("  //", "")  # no address of another host
    assert "/v1/summaries" in served.client.get("/openapi.json").json()["paths"]


def test_adapters_on_one_backbone_share_its_memory(adapters, place):
    models = [adapters[name].model for name in ("mop", "prompt")]
    own = [{n for n, _ in model.named_parameters() if n.startswith("mop.")} for model in models]
    first, second = (dict(model.named_parameters()) for model in models)
    shared = first.keys() & second.keys() - own[0] - own[1]
    assert shared == mop_t5.load_backbone(place / "wide").state_dict().keys() & first.keys()
    assert all(first[name].data_ptr() == second[name].data_ptr() for name in shared)
    assert not {p.data_ptr() for n, p in first.items() if n in own[0]} & {second[n].data_ptr() for n in own[1]}
    assert models[0].lm_head.weight is models[0].shared.weight


def test_only_equal_weights_are_shared(place):
    def load():
        return mop_t5.load_backbone(place / "wide")

    def size(model):
        return sum(one.numel() * one.element_size() for one in model.parameters())

    first, second, other = load(), load(), load()
    with torch.no_grad():
        other.encoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 1
    changed = other.encoder.block[0].layer[0].SelfAttention.q.weight
    assert share_weights(second, [first]) == size(first)
    assert share_weights(other, [first]) == size(first) - changed.numel() * changed.element_size()
    assert changed.data_ptr() != first.encoder.block[0].layer[0].SelfAttention.q.weight.data_ptr()
    assert share_weights(load().to(torch.bfloat16), [first]) == 0
    assert share_weights(load().to("meta"), [load().to("meta")]) == 0  # as weights that accelerate keeps on the disk


def test_names_of_adapters(runs, place):
    with raises(ValueError, "run", "none"):
        load_adapters([])
    with raises(ValueError, "'mop'", f"--run ANOTHER={runs[0]}"):
        load_adapters([runs[0], runs[0]])
    with raises(ValueError, "NAME=FOLDER", "'=x'"):
        load_adapters(["=x"])
    with raises(FileNotFoundError, "corpus", "run.json"):
        load_adapters([str(place / "corpus")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("max_queue", 0),
        ("max_body", 0),
        ("max_connections", 0),
        ("timeout", 0.0),
        ("max_wait", -1.0),
        ("max_beams", 0),
    ]
    + [("max_new_tokens", 0), ("timeout", float("inf")), ("batch_size", 1.5)],
)
def test_limits_are_checked(field, value):
    with raises((ValueError, TypeError), field):
        Limits(**{field: value})


def test_errors_of_the_command(runs, capsys, monkeypatch):
    def fails(*flags):
        assert main(["serve", "--run", runs[0], *flags]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    says(fails("--port", "65536"), "port", "65535", "65536")
    says(fails("--host", "nowhere.invalid"), "nowhere.invalid", "address")
    says(fails("--timeout", "0"), "timeout", "0")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "mop_t5.serving.server", raising=False)
    says(fails(), "uvicorn", "pip install 'mop-kernels[serve]'")
