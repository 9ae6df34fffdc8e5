"""Whatever is given, the answer is a correct result, or a ValueError or TypeError that names what was wrong."""

import gzip
import json
import string
from dataclasses import fields
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import mop_t5
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mop_t5.backbone.load import BackboneShape
from mop_t5.backbone.settings import LoadingSettings
from mop_t5.data import Collator, Example, read_examples, write_examples
from mop_t5.methods import get
from mop_t5.storage import adapter_folder
from mop_t5.training import TrainingConfig
from t5_oracle import tiny

CLEAR = (ValueError, TypeError)


def cases(count):
    """The same cases in every run; files and models may be used again by the next case."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check_clear(error, *names):
    """Raised by this library in words, naming one of names; not a Python or torch error that got through."""
    assert type(error) in CLEAR, repr(error)  # a UnicodeDecodeError is a ValueError, too
    assert any(name in str(error) for name in names), repr(error)
    assert str(error).endswith((".", ")")), repr(error)  # a sentence, which the errors of Python are not


# everything that a YAML file, a JSON file or a hurried person may put into a field
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**70), 10**400]),
    st.floats(),
    st.sampled_from(["", "mop", "4", "1e-3", "true", "cross", "\ud800", "a\0b", "Ⅷ"]),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(-2, 40), st.text(max_size=3), st.floats()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=3)), max_size=2),
    st.just(object()),
    st.just(b"taxi"),
    st.just(1j),
)

# ---- corpora

KEYS = ["scenario", "task", "dialogue", "input", "summary", "target", "id", "other"]
ODD = ["打车", "\ufeff", "\u2028x", "\x00", "\U0001f695", " ", "a\r\nb", "x" * 5000]
TEXTS = st.text(max_size=8) | st.sampled_from(ODD)
HALVES = st.sampled_from(["\ud800", "x\udfff"])
VALUES = st.one_of(TEXTS, HALVES, st.none(), st.integers(), st.floats(), st.lists(TEXTS, max_size=2))
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)
GOOD_ROWS = st.fixed_dictionaries(
    {key: TEXTS.filter(str.strip) for key in ("scenario", "dialogue", "summary")}, optional={"id": TEXTS}
)
LINES = st.one_of(
    ROWS.map(json.dumps),
    GOOD_ROWS.map(json.dumps),
    st.text(max_size=12),
    st.sampled_from(
        ["", "[]", "null", "{", '{"scenario": "a"', "1" * 4400, "[" * 100_000, '{"a": NaN}', '"taxi"', "{}{}", '{"id":']
        + ['{"scenario": "a", "scenario": "b", "dialogue": "c", "summary": "d"}', '{"id": ' + "9" * 4400 + "}"]
    ),
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030", "latin-1"])


@st.composite
def corpora(draw):
    """The name and the bytes of a file."""
    lines = draw(st.lists(LINES, max_size=4))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    content = text.encode(draw(ENCODINGS), errors=draw(st.sampled_from(["replace", "ignore"])))
    damage = draw(st.sampled_from(["none", "none", "cut", "garbage", "appended"]))
    name = draw(st.sampled_from(["train.jsonl", "train.jsonl.gz"]))
    if name.endswith(".gz") and draw(st.booleans()):
        content = gzip.compress(content)
    if damage == "cut":
        content = content[: len(content) // 2]
    if damage == "garbage":
        content = draw(st.binary(max_size=40))
    if damage == "appended":
        content += draw(st.binary(min_size=1, max_size=8))
    return name, content


@cases(150)
@given(corpora())
def test_any_file_is_read_or_refused(tmp_path, corpus):
    name, content = corpus
    path = tmp_path / name
    path.write_bytes(content)
    try:
        examples = read_examples(path)
    except CLEAR as error:
        check_clear(error, str(path))
        return
    for example in examples:
        assert example.scenario.strip() and example.dialogue.strip() and example.summary.strip()  # noqa: PT018
    write_examples(tmp_path / "again.jsonl", examples)
    assert read_examples(tmp_path / "again.jsonl") == examples


@cases(100)
@given(st.lists(GOOD_ROWS, min_size=1, max_size=4), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_right_file_is_read_right(tmp_path, rows, crlf, bom, zipped, escaped):
    text = ("\r\n" if crlf else "\n").join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    content = text.encode("utf-8-sig" if bom else "utf-8")
    path = tmp_path / ("train.jsonl.gz" if zipped else "train.jsonl")
    path.write_bytes(gzip.compress(content) if zipped else content)
    expected = [
        Example(row["scenario"], row["dialogue"], row["summary"], row.get("id", f"train-{number}"))
        for number, row in enumerate(rows, start=1)
    ]
    assert read_examples(path) == expected


# ---- configurations

SHAPES = [BackboneShape.of(tiny(d_model=d_model)) for d_model in (24, 32)]  # the heads are 32 wide together
VALID = {
    "scenarios": st.lists(st.text(string.ascii_letters, min_size=1, max_size=3), min_size=1, max_size=3, unique=True),
    "prefix_length": st.integers(0, 4),
    "d_mid": st.sampled_from([4, 8]),
    "terms_down": st.integers(1, 5),
    "terms_up": st.integers(1, 5),
    "rank": st.integers(1, 2),
    "reading": st.sampled_from(["A", "B"]),
    "routing": st.sampled_from(["scenario", "xmoe_top2"]),
    "attention": st.lists(st.sampled_from(["encoder_self", "decoder_self", "cross"]), min_size=1),
    "others": st.sampled_from(["mlp", "none"]),
    "num_experts": st.none() | st.integers(1, 3),
    "layers": st.none() | st.lists(st.integers(0, 3), min_size=1),
    "kv_maps": st.sampled_from(["separate", "joint", "separate_down"]),
    "input_scope": st.sampled_from(["shared", "expert"]),
    "rule": st.sampled_from(["low_rank", "full", "dense"]),
    "rule_scope": st.sampled_from(["global", "layer", "layer_expert"]),
    "share_lorl": st.booleans(),
    "drop_lorl": st.booleans(),
    "share_lore": st.booleans(),
    "bias": st.sampled_from(["layer", "expert", "layer_expert", None]),
    "init": st.sampled_from(["variance_matched", "compacter", "zero_up"]),
    "activation": st.sampled_from(["relu", "tanh", "gelu"]),
    "generator_activation": st.sampled_from(["relu", "tanh", "gelu"]),
    "balance_weight": st.floats(0, 3),
    "preset": st.sampled_from([None, "paper", "xmoe_top2"]),
    "dropout": st.floats(0, 0.9),
}


def test_every_field_is_drawn():
    assert {f.name for method in ("mop", "prefix_tuning") for f in fields(get(method).Config)} == set(VALID)


@st.composite
def configs(draw, method):
    """Fields of a method, most of them right, a few not."""
    names = [f.name for f in fields(get(method).Config)]
    chosen = {name: draw(VALID[name]) for name in draw(st.lists(st.sampled_from(names), unique=True))}
    chosen.setdefault("scenarios", ["a", "b"])
    for name in draw(st.lists(st.sampled_from([*names, "prefix_len", "Rank"]), max_size=2)):
        chosen[name] = draw(JUNK)
    return chosen


def check_config(method, chosen, shape):
    method_class = get(method)
    try:
        config = method_class.Config.make(chosen)
        module = method_class(config, shape, device="meta")
    except CLEAR as error:
        check_clear(error, *chosen, "scenarios", "terms_down", "terms_up", "d_mid")
        return
    # as an adapter folder brings it back
    assert method_class.Config.make(json.loads(json.dumps(config.to_dict()))) == config
    assert module.scenarios == tuple(chosen["scenarios"])


@cases(200)
@given(configs("mop"), st.sampled_from(SHAPES))
def test_any_fields_of_mop(chosen, shape):
    check_config("mop", chosen, shape)


@cases(100)
@given(configs("prefix_tuning"))
def test_any_fields_of_prefix_tuning(chosen):
    check_config("prefix_tuning", chosen, SHAPES[0])


@pytest.mark.parametrize("method", ["mop", "prefix_tuning"])
def test_a_refused_config_leaves_the_model_alone(method):
    model = tiny()
    attributes = dict(vars(model))

    @cases(25)
    @given(st.sampled_from(["prefix_length", "d_mid", "scenarios", "activation", "nonsense"]), JUNK)
    def attach(name, value):
        try:
            mop_t5.attach(model, method, **{"scenarios": ["a"], "d_mid": 8, "prefix_length": 1, name: value})
        except CLEAR as error:
            check_clear(error, name, "terms_down")
        else:
            mop_t5.detach(model)
        assert not mop_t5.is_attached(model)
        assert vars(model).keys() == attributes.keys()

    attach()


TRAINING = [f.name for f in fields(TrainingConfig)]
TRAINING_TYPES = {
    name: get_args(hint) if isinstance(hint, UnionType) else (get_origin(hint) or hint,)
    for name, hint in get_type_hints(TrainingConfig).items()
}


@cases(250)
@given(st.dictionaries(st.sampled_from(TRAINING), JUNK, min_size=1, max_size=2))
def test_any_settings_of_training(chosen):
    try:
        config = TrainingConfig(**chosen)
    except CLEAR as error:
        check_clear(error, *chosen)
        return
    for field in fields(TrainingConfig):
        value, allowed = getattr(config, field.name), TRAINING_TYPES[field.name]
        assert isinstance(value, (int, float) if allowed == (float,) else allowed)
        assert isinstance(value, bool) == (allowed[0] is bool and value is not None)


def test_unknown_settings_of_training():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'learning_rat'"):
        TrainingConfig(learning_rat=1e-3)


@cases(150)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(LoadingSettings)]), JUNK, min_size=1, max_size=2))
def test_any_settings_of_loading(chosen):
    try:
        LoadingSettings(**chosen).check_machine()
    except CLEAR as error:
        check_clear(error, *chosen)


# ---- scenario ids

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NO_INTEGERS = (torch.float32, torch.bool, torch.complex64, torch.uint16)
DTYPES = st.sampled_from([*INTEGERS, torch.int64, torch.int64, *NO_INTEGERS])


@st.composite
def tensors_of_ids(draw):
    shape = draw(st.sampled_from([(3,), (3,), (3,), (), (1,), (4,), (0,), (3, 1), (1, 3)]))
    low, high = draw(st.sampled_from([(0, 2), (0, 2), (-1, 3), (0, 200)]))
    size = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
    tensor = torch.tensor(values).reshape(shape).to(draw(DTYPES))
    how = draw(st.sampled_from(["plain", "plain", "plain", "meta", "sparse", "strided"]))
    if how == "meta":
        return tensor.to("meta")
    if how == "sparse" and tensor.dtype == torch.int64:
        return tensor.to_sparse()
    return torch.stack([tensor, tensor], -1)[..., 0] if how == "strided" else tensor


def right_ids(given_ids):
    """What three rows of a model of three scenarios take, or None if it must be refused."""
    if isinstance(given_ids, torch.Tensor):
        if given_ids.dtype not in INTEGERS or given_ids.is_meta or given_ids.is_sparse:
            return None
        given_ids = given_ids.tolist()
    ids = [given_ids] * 3 if type(given_ids) is int else given_ids
    if not isinstance(ids, (list, tuple)) or len(ids) != 3 or any(type(i) is not int for i in ids):
        return None
    return list(ids) if all(0 <= i < 3 for i in ids) else None


@cases(300)
@given(tensors_of_ids() | JUNK | st.lists(st.integers(-1, 3), min_size=3, max_size=3) | st.lists(JUNK, max_size=4))
def test_any_scenario_ids(given_ids):
    try:
        made = ATTACHED.mop.check_scenario_ids(given_ids, 3, torch.device("cpu"))
    except CLEAR as error:
        check_clear(error, "scenario_ids")
        assert right_ids(given_ids) is None
        return
    assert made.dtype == torch.int64
    assert made.tolist() == right_ids(given_ids)


@cases(100)
@given(JUNK | st.lists(st.sampled_from(["taxi", "food", "x", "taxi "]), max_size=3) | st.lists(JUNK, max_size=2))
def test_any_scenario_names(names):
    try:
        ids = mop_t5.scenario_ids(ATTACHED, names)
    except CLEAR as error:
        check_clear(error, "names", "scenario")
        return
    asked = [names] if isinstance(names, str) else names
    assert [ATTACHED.scenarios[i] for i in ids.tolist()] == list(asked)


@cases(50)
@given(st.lists(JUNK | st.integers(0, 2), min_size=1, max_size=3))
def test_any_ids_in_the_rows_of_a_batch(ids):
    rows = [{"input_ids": [4, 1], "labels": [5, 1], "scenario_ids": i} for i in ids]
    try:
        batch = Collator(0, 3)(rows)
    except CLEAR as error:
        check_clear(error, "scenario_ids")
        return
    assert batch["scenario_ids"].tolist() == ids


# ---- changes of scenarios and adapter folders


KINDS = st.sampled_from(["add", "like", "remove", "only"])


@cases(25)
@given(st.lists(st.tuples(KINDS, st.sampled_from(["taxi", "food", "a", "b"]) | JUNK), min_size=1, max_size=4))
def test_any_changes_of_scenarios(changes):
    """The names are those that a plain list would have, whatever was refused in between."""
    model, expected = attach_small(), ["taxi", "ticket", "food"]
    for change, name in changes:
        try:
            if change == "add":
                mop_t5.add_scenario(model, name)
                expected.append(name)
            elif change == "like":
                mop_t5.add_scenario(model, "like", like=name)
                expected.append("like")
            elif change == "remove":
                mop_t5.remove_scenario(model, name)
                expected.remove(name)
            else:
                mop_t5.train_only(model, [name])
        except CLEAR as error:
            check_clear(error, "name", "like")
        assert mop_t5.scenarios(model) == tuple(expected)
    assert all(p.shape[d] == len(expected) for p, d in model.mop.expert_parameters())


@st.composite
def descriptions(draw, description):
    """A description of a folder with something else in a few places."""
    made = json.loads(json.dumps(description))
    texts = st.text(max_size=4)
    plain = st.none() | st.booleans() | st.integers(-2, 9) | texts | st.lists(texts, max_size=2)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([made, made["config"], made["backbone"], made["backbone"]["shape"]]))
        key = draw(st.sampled_from([*place, "extra"]))
        if isinstance(place.get(key), dict):
            continue
        if draw(st.booleans()):
            place.pop(key, None)
        else:
            place[key] = draw(plain)
    return made


def test_any_description_of_a_folder(tmp_path):
    mop_t5.save(ATTACHED, tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    description = json.loads((tmp_path / "mop_config.json").read_text())
    model = tiny(dtype=torch.float32)

    @cases(100)
    @given(descriptions(description))
    def load(changed):
        changed["sha256"] = adapter_folder._checksum(changed, weights)
        (tmp_path / "mop_config.json").write_text(json.dumps(changed))
        try:
            mop_t5.load(model, tmp_path)
        except CLEAR as error:
            check_clear(error, str(tmp_path), "method", *changed, *description["config"])
            assert not mop_t5.is_attached(model)
            return
        mop_t5.detach(model)

    load()


def attach_small():
    fields = {"prefix_length": 1, "d_mid": 4, "terms_down": 2, "terms_up": 2}
    return mop_t5.attach(tiny(dtype=torch.float32), "mop", scenarios=["taxi", "ticket", "food"], **fields)


ATTACHED = attach_small()
