"""The JSON files that commands write: separators of lines inside texts, and damaged files."""

import pytest
from mop_lab.task_moe.routes import route_history
from mop_t5.data import Example
from mop_t5.evaluation.scores import read_predictions, read_scores, write_predictions
from mop_t5.files import json_lines, read_json, split_json_lines
from mop_t5.operations.contents import read_contents
from mop_t5.operations.run_folder import HISTORY, read_history
from mop_t5.training.callbacks import _lines
from mop_t5.training.checkpoints import FILES, _check_files

SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\r\nh"
DEEP = "[" * 100_000


def test_only_a_line_feed_ends_a_line(tmp_path):
    rows = [{"step": 1, "text": SEPARATORS}, {"step": 2, SEPARATORS: 0.5}]
    assert split_json_lines(json_lines(rows).decode()) == rows
    assert split_json_lines("") == []
    for name in (HISTORY, "routes.jsonl"):
        (tmp_path / name).write_bytes(json_lines(rows))
    assert read_history(tmp_path) == route_history(tmp_path) == rows
    (tmp_path / "routes.jsonl").write_bytes(json_lines(rows) + b'{"step": 3')
    assert _lines(tmp_path / "routes.jsonl") == rows  # without the last line, which was cut


def test_predictions_with_other_separators(tmp_path):
    examples = [Example("taxi", f"user: {SEPARATORS}", SEPARATORS, str(number)) for number in range(2)]
    write_predictions(tmp_path, examples, {"mop": [SEPARATORS, "b"]})
    assert read_predictions(tmp_path) == [(examples[0], {"mop": SEPARATORS}), (examples[1], {"mop": "b"})]


@pytest.mark.parametrize("content", [DEEP, '{"step": 1}\n' + DEEP, "[1]\n\n", "{"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        (HISTORY, read_history),
        ("routes.jsonl", route_history),
        ("contents.json", read_contents),
        ("predictions.jsonl", read_predictions),
        ("scores.json", read_scores),
        ("run.json", lambda folder: read_json(folder / "run.json", "Copy it again.")),
        ("records.jsonl", lambda folder: _lines(folder / "records.jsonl")),
        (FILES, _check_files),
    ],
)
def test_a_damaged_file_is_named(name, read, content, tmp_path):
    (tmp_path / name).write_text(content + "\n")
    with pytest.raises(ValueError, match=r"is damaged.*\.$") as raised:
        read(tmp_path)
    assert name in str(raised.value)
