"""Flags that are texts: every command takes them as they were typed, whatever YAML makes of such a text."""

import json
import re

import pytest
import yaml
from command_list import functions
from errors import raises
from mop_t5.cli.commands import Command, all_commands
from mop_t5.cli.flags import _command_parser, function_of, parse

TEXTS = [
    "#Person1#: {text}",
    "~",
    "null",
    "true",
    "yes",
    "no",
    "None",
    "123",
    "1e3",
    "0x1F",
    "1_000",
    ".5",
    ".nan",
    "-1",
]
TEXTS += ["[a]", "{a}", "a: b", "- x", "-", "? x", "@x", "%x", "*x", "&x", "!x", "`x", "|", ">", "---x y", "...", "<<"]
TEXTS += [
    "2020-01-01",
    "12:30:45",
    " a ",
    "\ta\n",
    "'a'",
    '"a"',
    "",
    " ",
    "a #b",
    "a\\n",
    "a\nb: c",
    "=",
    "a=b",
    "客服：{a}",
]
TEXTS += ["{input: x}", '{"a": 1}', "[", "}", "{{a}}", "\u2028", "\x85", "\U0001f600"]


PLACES = dict(functions())


def text_flags(parser):
    return [one.dest for one in parser._actions if one.option_strings and getattr(one, "_typehint", one.type) is str]


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
def test_a_flag_that_is_a_text_takes_what_was_typed(words, tmp_path):
    parser = _command_parser(function_of(PLACES[words]))
    assert not [one.dest for one in parser._actions if str(getattr(one, "_typehint", "")) == "str | None"]
    flags = text_flags(parser)
    needed = {one.dest: "x" for one in parser._actions if one.required and one.dest not in flags and one.option_strings}
    words_alone = ["x" for one in parser._actions if one.required and not one.option_strings]
    if needed:  # a list, for instance
        needed = dict.fromkeys(needed, "[]")
    others = [f"--{name}={value}" for name, value in needed.items()]
    for start in range(0, len(TEXTS), max(len(flags), 1)):
        typed = {flag: TEXTS[(start + place) % len(TEXTS)] for place, flag in enumerate(flags)}
        found = parser.parse_args([*words_alone, *others, *(f"--{flag}={text}" for flag, text in typed.items())])
        assert {flag: found[flag] for flag in flags} == typed
    # and in a file, where it stands in quotes
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(typed, default_style='"'), encoding="utf-8")
    found = parser.parse_args([*words_alone, *others, "--config", str(config)])
    assert {flag: found[flag] for flag in flags} == typed


def keywords(*arguments):
    return parse(arguments, Command(commands=all_commands()), "mop-t5")[1]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_arrives(text):
    convert = ["corpus", "convert", "--input", "in", "--output", "out"]
    assert keywords(*convert, f"--dialogue={text}")["dialogue"] == text
    assert keywords("generate", "--run", "r", f"--scenario={text}", f"--dialogue={text}")["scenario"] == text
    if not text.startswith("-") or " " in text or text in ("-", "-1"):  # a flag to argparse
        assert keywords(*convert, "--dialogue", text)["dialogue"] == text


def test_a_flag_that_may_be_repeated(tmp_path, capsys):
    assert keywords("serve", "--run", "a", "--port", "1", "--run=#b=[c]")["run"] == ["a", "#b=[c]"]
    assert [keywords("serve", f"--run={text}")["run"] for text in TEXTS] == [[text] for text in TEXTS]
    config = tmp_path / "config.yaml"
    config.write_text("run: [a, b]\nport: 2\n")
    assert keywords("serve", "--config", str(config))["run"] == ["a", "b"]
    for wrong in (["--run"], []):
        with pytest.raises(SystemExit, match="2"):
            keywords("serve", *wrong)
        assert "run" in capsys.readouterr().err
    assert keywords("generate", "--run", "a", "--run", "b")["run"] == "b"


def test_null_in_a_configuration_file_is_none(tmp_path):
    """As in run.json, which `mop-t5 train --config` takes."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"run": "r", "dialogue": None, "scenario": "null"}))
    found = keywords("generate", "--config", str(config))
    assert (found["dialogue"], found["scenario"]) == (None, "null")
    config.write_text("run: r\nscenario: 123\n")
    with pytest.raises(SystemExit, match="2"):
        keywords("generate", "--config", str(config))


TRAIN = ["train", "--corpus", "c", "--backbone", "b", "--output", "o", "--method", "fine_tuning"]


@pytest.mark.parametrize("text", [one for one in TEXTS if one not in ("null", "{input: x}")])
def test_options_that_are_texts_arrive(text):
    assert keywords(*TRAIN, f"--options.templates={text}")["options"] == {"templates": text}
    if not text.startswith("-"):
        assert keywords(*TRAIN, "--options.templates", text)["options"] == {"templates": text}


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("templates=null", {"templates": None}),
        ("templates={taxi: 'a {dialogue}', food: '#b'}", {"templates": {"taxi": "a {dialogue}", "food": "#b"}}),
        ("templates={taxi: 3}", {"templates": "{taxi: 3}"}),
        ("bias=null", {"bias": None}),
        ("bias=#5", {"bias": "#5"}),
        ("activation=null", {"activation": "null"}),
        ("prefix_length=3", {"prefix_length": 3}),
        ("learning_rate=1e-3", {"learning_rate": 1e-3}),  # a field of no method: the method says so
        ("scenarios=[a, b]", {"scenarios": ["a", "b"]}),
        ("attention=[decoder_self]", {"attention": ["decoder_self"]}),
        ("attention=sub", {"attention": "sub"}),
    ],
)
def test_other_options_are_yaml(flag, expected):
    assert keywords(*TRAIN, f"--options.{flag}")["options"] == expected


def test_options_from_everywhere(tmp_path, capsys):
    """A single option wins over a mapping, and texts stay texts in a mapping and in a file, as in a run.json."""
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"options": {"templates": "#a {scenario}: ", "init": "null", "rank": 2, "d": "3"}}))
    read = keywords(*TRAIN, "--config", str(config))["options"]
    assert read == {"templates": "#a {scenario}: ", "init": "null", "rank": 2, "d": "3"}
    flags = ["--options.rank=4", "--options", '{"templates": "~", "rank": 3, "rate": 1e-3}', "--options.bias", "b: c"]
    assert keywords(*TRAIN, *flags)["options"] == {"templates": "~", "rank": 4, "rate": 1e-3, "bias": "b: c"}
    demo = keywords("demo", "--options.mop.rank=2", "--options.mop.bias", "#", "--options.bitfit", "{places: [a]}")
    usual = keywords("demo")["config"].options
    mop = usual["mop"] | {"rank": 2, "bias": "#"}
    assert demo["config"].options == usual | {"mop": mop, "bitfit": {"places": ["a"]}}
    with pytest.raises(SystemExit, match="2"):
        keywords("evaluate", "--run", "r", "--options.rank=2")
    assert "unrecognized arguments: --options.rank" in capsys.readouterr().err


def test_an_option_without_a_value_takes_no_flag_for_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        keywords(*TRAIN, "--options.templates", "--resume")
    assert "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["3", "0", "false", "[]", "[[a, 1]]", "text"])
def test_a_part_of_an_option_that_has_a_value(value):
    with raises(ValueError, "options.prefix_length", repr(yaml.safe_load(value)), "'x.y'", "--options.prefix_length"):
        keywords(*TRAIN, "--options.prefix_length", value, "--options.prefix_length.x.y", "1")
    given = keywords(*TRAIN, "--options.prefix_length", "null", "--options.prefix_length.x", "1")
    assert given["options"] == {"prefix_length": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\nsteps: 4\n", ("config.yaml, line 1", "YAML", "steps, steps")),
        ("options: {rank: 2}\noptions.rank: 3\n", ("config.yaml", "options", "parts")),
        ("- steps\n", ("config.yaml", "mapping")),
        ("", ("config.yaml", "mapping")),
        (b"run: \xff\n", ("config.yaml", "YAML")),
    ],
)
def test_a_configuration_file_that_says_two_things_or_nothing(text, message, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    for words in (["--config", str(config)], [f"--config={config}"]):
        with raises((ValueError, TypeError), *message):
            keywords("train", *words)


@pytest.mark.parametrize("words", [["train"], ["corpus", "convert"], ["attempt", "few-shot"]])
def test_a_setting_that_a_command_has_not(words, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("ouput: x\n")
    with pytest.raises(SystemExit, match="2"):
        keywords(*words, "--config", str(config))
    assert re.search(r"config\.yaml: no such setting: ouput\. Known settings: .*\boutput\b", capsys.readouterr().err)
