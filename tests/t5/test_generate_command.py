"""mop-t5 generate as people serve with it: files and streams, lines that are wrong, interruptions, continuing."""

import gzip
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import mop_t5
import pytest
from errors import says
from killed import report_of
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus
from mop_t5.data.lines import open_binary
from mop_t5.evaluation import generate_summaries, serving
from mop_t5.evaluation import requests as requests_module
from mop_t5.operations.run_folder import load_run
from t5_fixtures import make_run

ROWS = synthetic_corpus(3, general=1, train=1, valid=1, test=150)["test"]
ROWS = [row for row in ROWS if row.scenario in ("taxi", "food", "ticket")]
LONG = "用户：司机绕路了。" * 60
# what is wrong with a line, and what is said of it
WRONG = {
    "not JSON": "not valid JSON",
    '{"scenario": "metro", "dialogue": "用户：你好", "id": "m"}': "scenario 'metro'; known are food, taxi, ticket",
    '{"scenario": "food", "dialogue": " \\n ", "id": "e"}': "`dialogue` is empty",
    '{"dialogue": "用户：你好", "id": "n"}': "no `scenario`",
    '{"scenario": "food", "dialogue": 3, "id": "i"}': "`dialogue` must be a string, got int",
    '{"scenario": "food", "\\ud800": "half"}': "no `dialogue`",
    "[1]": "expected a JSON object",
}


@pytest.fixture(scope="module")
def run(place):
    return make_run(place, "mop", prefix_length=2, d_mid=8, terms_down=4, terms_up=4)


def lines_of(rows):
    return "".join(json.dumps({"scenario": r.scenario, "dialogue": r.dialogue, "id": r.id}) + "\n" for r in rows)


@pytest.fixture(scope="module")
def mixed(place):
    """A file of 60 lines that ask for something, and blank ones."""
    lines = lines_of(ROWS[: 58 - len(WRONG)]).splitlines()
    long = json.dumps({"scenario": "taxi", "dialogue": LONG, "id": "long", "summary": None})
    lines[3:3], lines[20:20] = [long, "", *list(WRONG)[:4]], ["   ", *list(WRONG)[4:], long]
    path = place / "mixed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]


def generate(run, *arguments):
    return main([str(word) for word in ("generate", "--run", run, *arguments)])


def said(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_every_line_is_answered_in_order_whatever_is_wrong_with_it(run, mixed, tmp_path, capsys):
    output = tmp_path / "new" / "out.jsonl"
    assert generate(run, "--input", mixed, "--output", output, "--window", "7", "--batch_size", "3") == 3
    errors = capsys.readouterr().err
    rows, asked = rows_of(output), [line for line in mixed.read_text().splitlines() if line.strip()]
    assert len(rows) == len(asked) == 60
    model, tokenizer, _ = load_run(run)
    texts = []
    for number, (row, line) in enumerate(zip(rows, asked)):
        if line in WRONG:
            assert row["summary"] is None
            assert WRONG[line] in row["error"]
            assert row["error"].startswith(f"{mixed}, line ")
            assert row["error"] in errors
        else:
            wanted = json.loads(line)
            assert (row["id"], row["scenario"]) == (wanted["id"], wanted["scenario"])
            assert row.get("truncated", False) is (wanted["id"] == "long")
            assert "error" not in row
            if number % 5 == 0:
                example = mop_t5.data.Example(wanted["scenario"], wanted["dialogue"], "", "x")
                lengths = {"max_source": 100, "max_new_tokens": 6}
                assert generate_summaries(model, tokenizer, [example], **lengths) == [row["summary"]]
            texts.append(row["summary"])
    assert len(set(texts)) > 5
    named = {row["id"] for row in rows if "error" in row}
    assert named >= {"m", "e", "n", "i"}
    assert len([name for name in named if name.startswith("mixed-")]) == 3
    assert f"Written to {output}, lines: 60; summaries: 53; dialogues cut" in errors
    assert "max_source: 2; errors: 7; dialogues per second: " in errors


def test_a_file_without_errors_exits_with_zero_and_gzip_says_where_it_breaks_off(run, tmp_path, capsys):
    path = tmp_path / "new.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(ROWS[:5]).encode("utf-8-sig")))
    assert generate(run, "--input", path, "--output", tmp_path / "a.jsonl") == 0
    assert [row["id"] for row in rows_of(tmp_path / "a.jsonl")] == [row.id for row in ROWS[:5]]
    path.write_bytes(path.read_bytes()[:-9])
    assert generate(run, "--input", path, "--output", tmp_path / "b.jsonl") == 1
    says(said(capsys), "gzip", "line")
    kept = (tmp_path / "b.jsonl").read_bytes()
    assert kept
    assert (tmp_path / "a.jsonl").read_bytes().startswith(kept)  # what came before it is answered
    path.write_text("")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert generate(run, "--input", tmp_path / "empty.jsonl", "--output", tmp_path / "c.jsonl") == 0
    assert (tmp_path / "c.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_an_output_that_was_interrupted_ends_as_one_made_in_one_go(run, mixed, tmp_path, forks_with_t5):
    report = report_of(forks_with_t5, "generate", tmp_path, "--run", run, "--input", mixed)
    stdout = report.pop("no room on standard output")
    assert stdout["code"] == 1
    says(stdout["said"], "written", "'standard output'", "No space left")
    codes = [attempt["code"] for attempt in report.values()]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, -signal.SIGXFSZ, 1, 130, -signal.SIGKILL, 3, 3]
    lines = [attempt["lines"] for attempt in report.values()]
    assert lines[:2] == [0, 10]
    assert 20 < lines[2] < 30
    assert lines[2] + 10 <= lines[3] < lines[2] + 20
    assert lines[4] == lines[3] + 10
    assert lines[5:] == [lines[4] + 10, 60, 60]
    halves = [attempt["half a line"] for attempt in report.values()]
    assert halves[2:5] == [True, True, False]
    full = report["no room for the fourth"]["said"]
    says(full, "summaries", "written")
    assert "File too large" in full
    stopped = f"interrupted; {lines[4]} lines are in {tmp_path / 'killed.jsonl'}; resume it"
    assert report["Ctrl-C in the fifth"]["said"] == f"mop-t5 generate: {stopped} with --resume."
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert "lines: 60; summaries: 53" in report["after the end"]["said"]


def test_resume_takes_only_its_own_lines(run, mixed, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    command = ["--input", mixed, "--output", output]
    assert generate(run, *command, "--resume") == 3  # nothing there yet: from the start
    whole = output.read_bytes()
    start = b"".join(whole.splitlines(keepends=True)[:30])
    output.write_bytes(start + whole[len(start) :][:17])
    damaged = output.read_bytes()

    def refused(*arguments):
        assert generate(run, *arguments) == 1
        assert output.read_bytes() == damaged
        return said(capsys)

    says(refused(*command), "--resume", "--overwrite")
    assert "exclude each other" in refused(*command, "--resume", "--overwrite")
    says(refused(*command, "--resume", "--num_beams", "2"), "out.jsonl, line 1", "another run")
    other = tmp_path / "mixed.jsonl"
    lines = mixed.read_text().split("\n")
    other.write_text("\n".join(lines[:2] + lines[3:]))
    message = refused("--input", other, "--output", output, "--resume")
    says(message, "out.jsonl, line 3", "line of the input")
    other.write_text("\n".join(lines[:2]))
    message = refused("--input", other, "--output", output, "--resume")
    says(message, "out.jsonl, line 3", "input", "shorter")

    assert generate(run, *command, "--resume", "--batch_size", "5", "--dry_run") == 3
    assert output.read_bytes() == damaged
    assert "Would write to" in said(capsys)
    assert generate(run, *command, "--resume", "--batch_size", "5") == 3
    assert output.read_bytes() == whole
    output.write_bytes(whole[:100] + b"\n" + whole[101:])
    assert generate(run, *command, "--resume") == 1
    assert "out.jsonl, line 1: not valid JSON" in said(capsys)
    assert generate(run, *command, "--overwrite") == 3
    assert output.read_bytes() == whole


def test_a_dry_run_counts_and_writes_nothing(run, mixed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(serving, "generate_summaries", None)
    output = tmp_path / "out.jsonl"
    assert generate(run, "--input", mixed, "--output", output, "--dry_run") == 3
    text = capsys.readouterr()
    assert not output.exists()
    assert text.out == ""
    says(text.err, "lines: 60", "summaries: 53", "max_source: 2", "errors: 7")
    assert "`dialogue` is empty" in text.err


def test_files_that_cannot_be_used_are_said_before_anything_is_done(run, mixed, tmp_path, capsys):
    def refused(*arguments):
        assert generate(run, *arguments) == 1
        return said(capsys)

    before = mixed.read_bytes()
    says(refused("--input", mixed, "--output", mixed, "--overwrite"), "input", "--output")
    assert mixed.read_bytes() == before
    assert "no file at" in refused("--input", tmp_path / "no.jsonl")
    assert "no file at" in refused("--input", tmp_path)
    assert "no regular file" in refused("--input", mixed, "--output", tmp_path)
    assert "compress out.jsonl afterwards" in refused("--input", mixed, "--output", tmp_path / "out.jsonl.gz")
    assert "need --output" in refused("--input", mixed, "--resume")
    says(refused("--input", mixed, "--window", "0"), "window", "1", "0")
    (tmp_path / "file").write_text("")
    message = refused("--input", mixed, "--output", tmp_path / "file" / "out.jsonl")
    says(message, "summaries", "written")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(run, mixed, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert generate(run, "--input", mixed, "--output", tmp_path / "out.jsonl") == 1
    assert "Permission denied" in said(capsys)


@pytest.fixture
def stream(run):
    """A process that reads a pipe, and a queue of the lines that it writes."""
    command = [sys.executable, "-m", "mop_t5.cli", "generate", "--run", str(run), "--input", "-"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    answers = queue.Queue()
    threading.Thread(target=lambda: [answers.put(line) for line in process.stdout], daemon=True).start()
    yield process, answers
    process.kill()


@pytest.mark.slow
def test_a_stream_is_answered_as_it_comes_until_ctrl_c(stream):
    process, answers = stream
    for row in ROWS[:3]:  # each is answered while the stream stays open and nothing else comes
        process.stdin.write(lines_of([row]) + "\n")
        process.stdin.flush()
        assert json.loads(answers.get(timeout=300))["id"] == row.id
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    errors = process.stderr.read().strip()
    # the third may have been read above before it was counted there
    assert re.fullmatch("mop-t5 generate: interrupted; [23] lines are in standard output.", errors.splitlines()[-1])
    assert "Fatal" not in errors
    assert "Traceback" not in errors


def test_a_stream_can_be_replayed_and_stdout_has_nothing_else(run, mixed, tmp_path, capsysbinary, monkeypatch):
    with open(mixed) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert generate(run, "--input", "-") == 3
    whole = capsysbinary.readouterr().out
    assert [json.loads(line)["id"] for line in whole.splitlines()][4] == "stdin-6"
    output = tmp_path / "out.jsonl"
    output.write_bytes(whole[: len(whole) // 2])
    with open(mixed) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert generate(run, "--input", "-", "--output", output, "--resume") == 3
    assert output.read_bytes() == whole


def test_no_line_fills_the_memory(run, tmp_path, monkeypatch):
    monkeypatch.setattr(requests_module, "LONGEST", 400)
    for length in (401, 402, 5000):
        path = tmp_path / f"{length}.jsonl"
        path.write_text("\n".join(['{"scenario": "taxi", "dialogue": "x"}', "y" * length, '{"id": 1}']))
        rows = [request.error for request in requests_module.requests_in(open_binary(path), "f", "f", None)]
        assert rows[0] is None
        assert rows[1] == "f, line 2: longer than 400 bytes. Cut the dialogue."
        assert rows[2].startswith("f, line 3: no `scenario`")
        assert len(rows) == 3


def test_reading_is_never_more_than_a_window_ahead():
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    some = requests_module.windows(endless(), 5)
    for start in (0, 5, 10):
        assert next(some) == list(range(start, start + 5))
        assert len(taken) <= start + 5 + 5 + 2


def test_one_dialogue(run, capsys):
    assert generate(run, "--scenario", "taxi", "--dialogue", LONG) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)
    assert (row["id"], row["scenario"], row["truncated"]) == ("dialogue", "taxi", True)
    assert generate(run, "--scenario", "taxi", "--dialogue", " ") == 1
    says(said(capsys), "--dialogue", "`dialogue`", "empty")


@pytest.mark.parametrize("field", ["scenario", "dialogue"])
@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "null", "true", "1", "[]", '["在吗"]', '{"text": "在吗"}', '[{"a": 1}]']
)
def test_a_request_is_made_of_texts_only(field, value):
    texts = {"scenario": '"taxi"', "dialogue": '"在吗"'}
    assert requests_module.request_of(row_of(texts), "here", "x", None).example.dialogue == "在吗"
    request = requests_module.request_of(row_of(texts | {field: value}), "here", "x", None)
    assert request.example is None
    says(request.error, "here", f"`{field}`", "string")
    unread = row_of(texts | {"summary": value, "references": value})
    assert requests_module.request_of(unread, "here", "x", None).error is None


def row_of(fields):
    return f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in fields.items())}}}".encode()
