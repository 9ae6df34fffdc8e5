"""CrossWOZ as a corpus: small dialogues in its layout, cut, told and dropped as they must be."""

import hashlib
import json
import zipfile

import pytest
from errors import raises, says
from mop_t5.cli.main import main
from mop_t5.data import read_corpus
from mop_t5.data.crosswoz import crosswoz_corpus, read_clone

HOTEL = "你要去一个酒店(id=1)住宿。你希望酒店是经济型的。你希望酒店提供叫醒服务。你想知道这个酒店的名称。"
SIGHT = "你要去id=1附近的景点(id=2)游玩。你想知道这个景点的电话。"
CAB = "你想呼叫从id=1到id=2的出租车。你想知道这个出租的车型。"
GOALS = [
    [1, "酒店", "酒店类型", "经济型", False],
    [1, "酒店", "酒店设施-叫醒服务", "是", False],
    [1, "酒店", "名称", "", False],
    [2, "景点", "电话", "", False],
    [2, "景点", "名称", "", False],
    [3, "出租", "出发地", "id=1", False],
    [3, "出租", "目的地", "id=2", False],
    [3, "出租", "车型", "", False],
]
FOUND = {(1, "名称"): "如家酒店(北京 天坛店)", (2, "名称"): "天坛", (3, "出发地"): "如家酒店", (3, "目的地"): "天坛"}
# what the user says, the sub-goals that it opens, the domains it is of, and the answer
TURNS = [
    ("找一家经济型、有叫醒服务的 酒店", [1], ["酒店"], "推荐\t如家酒店"),
    ("叫什么？", [], ["酒店"], "如家酒店(北京天坛店)"),
    ("附近的景点呢", [2], ["景点"], "天坛"),
    ("叫车从如家酒店到天坛", [3], ["出租"], "#CX"),
]


def dialogue(turns=TURNS, goals=GOALS, finished=True):
    """A dialogue in CrossWOZ's layout: a slot of each sub-goal is marked in user_state once it has been opened."""
    messages, opened = [], set()
    for user, opens, domains, system in turns:
        opened |= set(opens)
        state = [[goal[0], goal[1], goal[2], goal[3], goal[0] in opened] for goal in goals]
        acts = [["Inform", domain, "x", "y"] for domain in domains] + [["General", "thank", "none", "none"]]
        messages.append({"role": "usr", "content": user, "dialog_act": acts, "user_state": state})
        messages.append({"role": "sys", "content": system, "dialog_act": []})
    final = [[g[0], g[1], g[2], FOUND.get((g[0], g[2]), g[3] or "x"), finished] for g in goals]
    return {"goal": goals, "final_goal": final, "task description": [HOTEL, SIGHT, CAB], "messages": messages}


def made(**changes):
    splits, dropped = crosswoz_corpus({"7": dialogue(**changes)})
    rows = {row.id: row for rows in splits.values() for row in rows}
    return rows, dict(dropped)


def with_turn(place, **changes):
    """TURNS with another turn at this place; changes: user, opens, domains."""
    user, opens, domains, system = TURNS[place]
    given = {"user": user, "opens": opens, "domains": domains} | changes
    return [*TURNS[:place], (given["user"], given["opens"], given["domains"], system), *TURNS[place + 1 :]]


def test_a_dialogue_is_cut_into_its_sub_goals():
    rows, dropped = made()
    assert dropped == {}
    assert sorted(rows) == ["crosswoz-7-1", "crosswoz-7-2", "crosswoz-7-3"]
    hotel, sight, cab = (rows[f"crosswoz-7-{i}"] for i in (1, 2, 3))
    assert [row.scenario for row in (hotel, sight, cab)] == ["hotel", "attraction", "taxi"]
    assert hotel.dialogue == (
        "用户：找一家经济型、有叫醒服务的酒店\n客服：推荐如家酒店\n用户：叫什么？\n客服：如家酒店(北京天坛店)"
    )
    assert sight.dialogue == "用户：附近的景点呢\n客服：天坛"
    assert hotel.summary == "用户要去一个酒店住宿，希望酒店是经济型的，希望酒店提供叫醒服务，想知道这个酒店的名称。"
    assert sight.summary == "用户要去附近的景点游玩，想知道这个景点的电话。"  # the hotel is not named in this piece
    # said without the branch, told with it
    assert cab.summary == "用户想呼叫从如家酒店(北京天坛店)到天坛的出租车，想知道出租车的车型。"


def test_a_place_nearby_is_named_where_the_user_names_it():
    rows, _ = made(turns=with_turn(2, user="如家酒店（北京天坛店）附近的景点"))  # in wide characters
    assert rows["crosswoz-7-2"].summary.startswith("用户要去如家酒店(北京天坛店)附近的景点游玩")


@pytest.mark.parametrize(
    ("changes", "reason", "gone"),
    [
        ({"turns": with_turn(3, user="叫车")}, "place of another sub-goal, not named here", "3"),
        ({"turns": with_turn(1, domains=["酒店", "景点"])}, "turn of another domain", "1"),
        ({"turns": with_turn(2, opens=[2, 3])[:3]}, "turn of several sub-goals in it or beside it", "1"),
        ({"turns": [*TURNS[:3], TURNS[0], TURNS[3]]}, None, ""),  # a slot that was spoken of before opens nothing
        ({"turns": TURNS[:3]}, "sub-goal never spoken of", "3"),
        ({"turns": with_turn(0, user="找酒店")}, "less than half of the wanted values said", "1"),
        ({"finished": False}, "sub-goal not finished", "123"),
    ],
)
def test_pieces_that_are_not_clear_are_dropped(changes, reason, gone):
    rows, dropped = made(**changes)
    if reason:
        assert dropped[reason] == len(gone)
    assert not {f"crosswoz-7-{i}" for i in gone} & set(rows)
    if len(dropped) == 1 and reason:
        assert len(rows) == 3 - len(gone)


def test_a_sub_goal_that_is_taken_up_again_is_dropped():
    goals = [*GOALS, [1, "酒店", "电话", "", False]]
    later = dialogue(goals=goals)
    for message in later["messages"][:6:2]:  # its telephone is asked for in the last turn only
        message["user_state"][-1][4] = False
    for state in later["messages"][6]["user_state"]:
        state[4] = state[4] and state[0] != 3
    _, dropped = crosswoz_corpus({"7": later})
    assert dropped["sub-goal interrupted by another"] == 1


def test_broken_turns_drop_the_dialogue():
    broken = dialogue()
    del broken["messages"][0]
    splits, dropped = crosswoz_corpus({"7": broken})
    assert not any(splits.values())
    assert dropped == {"user and system do not take turns": 1}


def test_a_question_without_an_answer_drops_the_dialogue():
    open_end = dialogue()
    del open_end["messages"][-1]
    splits, dropped = crosswoz_corpus({"7": open_end})
    assert not any(splits.values())
    assert dropped == {"user and system do not take turns": 1}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task description", [HOTEL, SIGHT], ("3 sub-goals", "descriptions")),
        ("task description", None, ("3 sub-goals", "descriptions", "None")),
        ("task description", [HOTEL, SIGHT, {"zh": CAB}], ("TypeError",)),
        ("messages", None, ("TypeError",)),
        ("messages", [message | {"content": float("nan")} for message in dialogue()["messages"]], ("TypeError",)),
        ("messages", [message | {"content": ["a"]} for message in dialogue()["messages"]], ("TypeError",)),
    ],
)
def test_what_is_no_text_becomes_none(name, value, message):
    with raises(ValueError, "dialogue '7'", "CrossWOZ", *message):
        crosswoz_corpus({"7": dialogue() | {name: value}})


def test_a_clone_without_rows_writes_nothing(tmp_path, capsys):
    for part in ("train", "val", "test"):
        (tmp_path / f"{part}.json").write_text(json.dumps({part: dialogue(finished=False)}))
    assert main(["corpus", "crosswoz", "--clone", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    says(capsys.readouterr().err, "no training rows", "sub-goal not finished: 9")
    assert not (tmp_path / "out").exists()


def test_splits_and_order_depend_on_the_ids_only():
    dialogues = {str(i): dialogue() for i in range(60)}
    splits, _ = crosswoz_corpus(dialogues)
    again, _ = crosswoz_corpus(dict(reversed(dialogues.items())))
    assert splits == again
    assert {len(rows) % 3 for rows in splits.values()} == {0}  # a dialogue is in one split
    assert len(splits["train"]) > 3 * len(splits["valid"]) > 0
    for split, rows in splits.items():
        hashes = [hashlib.sha256(row.id.encode()).hexdigest() for row in rows]
        assert hashes == sorted(hashes)
        for row in rows:
            bucket = int(hashlib.sha256(row.id[:-2].encode()).hexdigest(), 16) % 10
            assert split == {0: "test", 1: "valid"}.get(bucket, "train")


def clone(folder, packed=True):
    """A clone whose parts hold twenty dialogues each."""
    inside = folder / "data" / "crosswoz"
    inside.mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        text = json.dumps({str(20 * number + i): dialogue() for i in range(20)}, ensure_ascii=False)
        if packed:
            with zipfile.ZipFile(inside / f"{part}.json.zip", "w") as archive:
                archive.writestr(f"{part}.json", text)
        else:
            (inside / f"{part}.json").write_text(text, encoding="utf-8")
    return folder


def test_the_command(tmp_path, capsys):
    packed, plain = clone(tmp_path / "packed"), clone(tmp_path / "plain", packed=False)
    for source, name in ((packed, "a"), (plain / "data" / "crosswoz", "b")):
        assert main(["corpus", "crosswoz", "--clone", str(source), "--output", str(tmp_path / name)]) == 0
    assert "attraction" in capsys.readouterr().out
    for split in ("train", "valid", "test"):
        texts = [(tmp_path / name / f"{split}.jsonl").read_text(encoding="utf-8") for name in ("a", "b")]
        assert texts[0] == texts[1]
        first = json.loads(texts[0].splitlines()[0])
        assert list(first) == ["scenario", "dialogue", "summary", "id"]
    corpus = read_corpus(tmp_path / "a")
    assert sum(map(len, corpus.values())) == 180
    small = ["corpus", "crosswoz", "--clone", str(packed), "--parts", "[val, test]", "--output", str(tmp_path / "c")]
    assert main(small) == 0
    of_parts = read_corpus(tmp_path / "c")
    assert {row.id for rows in of_parts.values() for row in rows} == {
        row.id for rows in corpus.values() for row in rows if int(row.id.split("-")[1]) >= 20
    }
    assert main(small) == 1
    says(capsys.readouterr().err, "exists", "not empty")

    assert main(["corpus", "floors", "--corpus", str(tmp_path / "a"), "--output", str(tmp_path / "tables")]) == 0
    printed = capsys.readouterr().out
    assert "nearest reference" in printed
    says(printed, f"{len(corpus['test'])} test rows")
    table = (tmp_path / "tables" / "floors.md").read_text(encoding="utf-8")
    assert [line for line in table.splitlines() if "100.0/100.0/100.0" in line]  # all summaries of a scenario are equal


def test_errors(tmp_path):
    folder = clone(tmp_path / "clone")
    inside = folder / "data" / "crosswoz"
    with raises(ValueError, "parts", "train, val, test", "valid"):
        read_clone(folder, ["valid"])
    with raises(FileNotFoundError, "train.json", "train.json.zip"):
        read_clone(tmp_path)
    (inside / "val.json").write_text('{"3": {}}')
    with raises(ValueError, "dialogue '3'", "val"):
        read_clone(folder)
    with raises(ValueError, "dialogue '3'", "CrossWOZ", "KeyError", "'messages'"):
        crosswoz_corpus(read_clone(folder, ["val"]))
    one = json.dumps(dialogue(), ensure_ascii=False)
    (inside / "val.json").write_text(f'{{"7": {one}, "7": {one}}}', encoding="utf-8")
    with raises(ValueError, "val.json", "key '7'", "more than once"):
        read_clone(folder, ["val"])
    (inside / "val.json").write_bytes('{"7": "咨询"}'.encode("gb18030"))
    with raises(ValueError, "val.json", "UTF-8"):
        read_clone(folder, ["val"])
    (inside / "val.json").write_text("\ufeff{}", encoding="utf-8")  # as some editors save it
    assert read_clone(folder, ["val"]) == {}
    (inside / "val.json").write_text("[1]")
    with raises(ValueError, "val.json", "list"):
        read_clone(folder, ["val"])
    (inside / "val.json").unlink()
    (inside / "val.json.zip").write_bytes(b"no archive")
    with raises(ValueError, "val.json", "cannot be read"):
        read_clone(folder, ["val"])
