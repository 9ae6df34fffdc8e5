"""What goes wrong on the command line: for every command one sentence that says what to do, and nothing is lost."""

import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
from command_list import functions
from errors import says
from mop_lab.suites import trial
from mop_t5.cli.flags import dataclasses_of, function_of, positionals_of
from mop_t5.cli.main import main

SMALL = ["--steps", "2", "--batch_size", "4", "--log_every", "1", "--max_target", "8"]
# flags for what is read, and how a path is written behind those that take several
READ = {"suites": "[{}]", "runs": "[{}]", "backbones": "[{}]", "representations": "{{x: {}}}"}
READ |= dict.fromkeys(
    ("corpus", "backbone", "run", "input", "adapter", "library", "like", "tokenizer", "features"), "{}"
)
READ |= dict.fromkeys(("experts", "task_vectors", "vanilla", "tasks", "clone", "checkpoint", "vocabulary"), "{}")
# other flags that these commands need, or that keep them short
NEEDED = {
    "prompts add": ["--name", "x"],
    "prompts remove": ["--name", "x"],
    "attempt memory": ["--batch_sizes", "[1]", "--systems", "[MOP]"],
    "squeeze": ["--scenario", "taxi"],
    "plan": ["--devices", "1x1GB"],
}
EVERY = [pytest.param(*one, id=" ".join(one[0])) for one in functions()]


def flags_of(where):
    command = function_of(where)
    dataclasses = dataclasses_of(command)
    without = {*dataclasses, *positionals_of(command)}
    own = [name for name in inspect.signature(command).parameters if name not in without]
    return own + [
        field.name for one, left_out in dataclasses.values() for field in fields(one) if field.name not in left_out
    ]


def call(capsys, *words):
    """The exit code, what was printed and the last line of the errors, behind bars of progress."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip().splitlines()[-1] if captured.err.strip() else ""


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("words", "where"), EVERY)
def test_a_path_that_is_not_there_is_named_and_nothing_is_written(words, where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # for default outputs
    given = flags_of(where)
    arguments = [part for name in given if name in READ for part in (f"--{name}", READ[name].format(tmp_path / "none"))]
    arguments += [str(tmp_path / "none") for _ in positionals_of(function_of(where))]
    arguments += ["--output", str(tmp_path / "out")] if "output" in given else []
    code, printed, said = call(capsys, *words, *arguments, *NEEDED.get(" ".join(words), []))
    assert code == 1
    assert printed == ""
    assert said.startswith(f"mop-t5 {' '.join(words)}: ")
    assert str(tmp_path / "none") in said
    assert "unexpected" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def made(place):
    """Runs and files that commands read."""
    base = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), *SMALL, "--method"]
    mop = ["mop", "--options", '{"prefix_length": 2, "d_mid": 4, "terms_down": 2, "terms_up": 2}']
    for method in (mop, ["task_moe"], ["prompt_tuning"], ["attempt", "--options.untrained_sources", "2"]):
        assert main([*base, *method, "--output", str(place / method[0])]) == 0
    (place / "features.yaml").write_text("{taxi: {short: 1}, food: {short: 0}, ticket: {short: 1}}")
    (place / "calls.csv").write_text("a,b,c\n" + "".join(f"x,text {i},note {i}\n" for i in range(20)))
    return place


WRITING = {
    "train": "--corpus {}/corpus --backbone {}/backbone --method prompt_tuning --steps 1",
    "params": "--backbone {}/backbone --methods [prompt_tuning]",
    "table 1": "--corpus {}/corpus",
    "table 4": "--backbone {}/backbone --systems [MTL-vanilla]",
    "prompts list": "--library {}/library",
    "attempt attention": "--run {}/attempt",
    "moe routes": "--run {}/task_moe --features {}/features.yaml",
    "squeeze": "--run {}/task_moe --scenario taxi",
    "corpus convert": "--input {}/calls.csv --scenario {{a}} --dialogue {{b}} --summary {{c}} --split 8:1:1",
    "corpus floors": "--corpus {}/corpus",
    "export": "--run {}/mop",
    "demo": "--short",
}


@pytest.mark.parametrize("command", WRITING)
def test_what_is_in_an_output_folder_is_never_lost(command, made, tmp_path, capsys):
    (made / "library").mkdir(exist_ok=True)
    output = tmp_path / "output"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    words = [*command.split(), *(word.replace("{}", str(made)) for word in WRITING[command].replace("{{", "{").split())]
    words = [word.replace("}}", "}") for word in words]
    code, _, said = call(capsys, *words, "--output", output)
    if code:
        assert str(output) in said
        assert files_of(tmp_path) == {output / "mine.txt": b"mine"}
        return
    assert len(files_of(output)) > 1
    for path in output.iterdir():  # as if they were somebody's own
        path.write_bytes(path.read_bytes() + b" ")
    before = files_of(output)
    code, printed, _ = call(capsys, *words, "--output", output)
    assert code == 0
    assert set(before.values()) <= set(files_of(output).values())
    assert files_of(output)[output / "mine.txt"] == b"mine "
    assert "The earlier" in printed
    count = len(files_of(output))
    assert call(capsys, *words, "--output", output)[0] == 0
    assert len(files_of(output)) == count  # the same tables again


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(made, tmp_path, capsys):
    train = ["train", "--corpus", made / "corpus", "--backbone", made / "backbone", "--method", "prompt_tuning"]
    train += ["--options.prefix_length", 3, *SMALL, "--evaluate_every", 1, "--output"]
    before = files_of(made)
    code, printed, _ = call(capsys, *train, tmp_path / "new", "--dry_run")
    assert code == 0
    rows, valid = (len((made / "corpus" / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "valid"))
    assert f"Would train 48 parameters for 2 steps of 4 rows on {rows} rows, validated on {valid} every 1" in printed
    says(printed, f"Output: {tmp_path / 'new'}", "Nothing was written")
    code, _, said = call(capsys, *train, made / "mop", "--dry_run")
    assert code == 1
    says(said, "exists", "not empty")
    assert "is emptied first" in call(capsys, *train, made / "mop", "--dry_run", "--overwrite")[1]
    code, printed, _ = call(capsys, "evaluate", "--run", made / "mop", "--split", "valid", "--dry_run")
    assert (code, f"Would score {valid} valid rows" in printed) == (0, True)
    code, printed, _ = call(capsys, "demo", "--short", "--output", tmp_path / "new", "--dry_run")
    assert (code, "then mop, prefix_tuning on 200 others for 10 steps each" in printed) == (0, True)
    assert files_of(made) == before
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(made, tmp_path, monkeypatch, capsys):
    base = ["--corpus", made / "corpus", "--backbone", made / "backbone", *SMALL]
    (tmp_path / "file").write_text("mine")
    memory = ["attempt", "memory", "--backbones", "[t5-small]", "--batch_sizes", "[1]", "--systems", "[MOP]"]
    commands = [["train", *base], ["table", "2", *base], memory]
    commands += [["moe", "disable", "--run", made / "task_moe", "--features", made / "features.yaml"]]
    for words in commands:
        code, _, said = call(capsys, *words, "--output", tmp_path / "file" / "inner")
        assert (code, f"{tmp_path / 'file'} is a file" in said) == (1, True), said
    library = ["--library", tmp_path / "file", "--output", tmp_path / "out", "--dry_run"]
    assert "is a file" in call(capsys, "attempt", "sources", *base, *library)[2]
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))  # root may write anywhere
    for words in commands:
        code, _, said = call(capsys, *words, "--output", tmp_path / "out")
        assert code == 1
        says(said, str(tmp_path), "permissions")
    assert files_of(tmp_path) == {tmp_path / "file": b"mine"}


def test_a_disk_that_is_full_leaves_what_was_saved_before(made, tmp_path, capsys):
    words = ["train", "--corpus", made / "corpus", "--backbone", made / "backbone", *SMALL, "--save_every", "1"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # less than the weights have
        code, _, said = call(capsys, *words, "--output", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    says(said, "checkpoint-1", "written")
    says(said, "Nothing", "lost", "room", "another folder")
    assert sorted(path.name for path in files_of(tmp_path)) == ["contents.json", "run.json"]


@pytest.mark.parametrize(("package", "words"), [("jsonargparse", "--help"), ("transformers", "train --help")])
def test_a_missing_package_is_one_sentence_with_the_cure(package, words):
    code = (
        f"import sys; sys.modules[{package!r}] = None; from mop_t5.cli.main import main; "
        f"sys.exit(main({words.split()!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    says(done.stderr.splitlines()[-1], package, 'pip install "mop-kernels[t5]"')
    assert "Traceback" not in done.stderr


def test_help_is_there_without_torch():
    code = "import sys; from mop_t5.cli.main import main; main(['table', '--help'])"
    code = f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\n  mop-t5 table 4 " in done.stdout


def test_a_reader_that_goes_ends_the_command_quietly(tmp_path, forks_with_t5):
    """What a process does when it ends, writing the rest of its output, is done here by forks.py."""
    code = f"""
import os, sys
from mop_t5.cli.main import main
source, sink = os.pipe()
os.close(source)
os.dup2(sink, 1)
try:
    code = main(["prompts", "list", "--library", {str(tmp_path)!r}])
except SystemExit as stop:  # of rich
    code = stop.code
print(code, file=sys.stderr)
"""
    assert forks_with_t5.run(code) == "1"


def test_ctrl_c_keeps_the_checkpoints_of_a_training(made, tmp_path, capsys, forks_with_t5):
    """On a process of its own, in the middle of its steps."""
    run = tmp_path / "run"
    words = ["train", "--corpus", str(made / "corpus"), "--backbone", str(made / "backbone"), "--output", str(run)]
    words += ["--method", "prompt_tuning", "--save_every", "2", "--log_every", "1", "--schedule", "constant"]
    # a shell lets what it starts in the background ignore Ctrl-C
    code = f"""
import signal
from mop_t5.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
print(main({[*words, "--steps", "100000"]!r}))
"""
    process = forks_with_t5.begin(code)
    end = time.monotonic() + 300
    while not (run / "checkpoints" / "checkpoint-4").is_dir() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process, signal.SIGINT)
    *said, status = forks_with_t5.end().splitlines()
    assert status == "130"
    assert "Traceback" not in "\n".join(said)
    whole = sorted(int(path.name.split("-")[1]) for path in (run / "checkpoints").iterdir())
    says(said[-1], "mop-t5 train", "interrupted", f"{run}/checkpoints/checkpoint-{whole[-1]}", "--resume")
    assert call(capsys, *words, "--steps", whole[-1] + 2, "--resume")[0] == 0
    steps = [json.loads(line)["step"] for line in (run / "loss.jsonl").read_text().splitlines()]
    assert steps[-1] == whole[-1] + 2
    assert steps == sorted(steps)


def test_ctrl_c_says_how_each_command_goes_on(made, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    base = ["--corpus", made / "corpus", "--backbone", made / "backbone", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(trial, "TrainingRun", stop)
        words = ["table", "2", *base, "--systems", "[MTL-vanilla]", "--seeds", "[3, 4]", "--output", tmp_path / "suite"]
        code, _, said = call(capsys, *words)
    assert code == 130
    says(said, "mop-t5 table 2", "interrupted", "run 1 of 2, MTL-vanilla, seed 3", "same command", "train")
    monkeypatch.setattr("mop_t5.training.training_run.train", stop)
    code, _, said = call(capsys, "train", *base, "--output", tmp_path / "run")
    assert (code, "--overwrite" in said) == (130, True)
    code, _, said = call(capsys, "train", *base, "--output", tmp_path / "seeds", "--seeds", "[0, 1]")
    assert (code, "--resume" in said) == (130, True)
    monkeypatch.setattr("mop_t5.evaluation.run_evaluation.generate_summaries", stop)
    code, _, said = call(capsys, "evaluate", "--run", made / "mop", "--floors", "false")
    assert (code, "same command" in said) == (130, True)
    monkeypatch.undo()
    assert call(capsys, "evaluate", "--run", made / "mop", "--floors", "false")[0] == 0
