"""SPoT: golden similarities and mixtures, and prompts that start by them."""

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.methods.parts.spot import SIMILARITIES, similarities, start
from mop_t5.methods.prompt_tuning import PromptTuningConfig
from mop_t5.storage import prompt_library
from safetensors.torch import load_file, save_file
from t5_oracle import batch, tiny

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/attempt_sub.safetensors"
LENGTH = 3
NAMES = ("mnli", "qqp", "squad")


@pytest.fixture(scope="module")
def golden():
    stored = {name.removeprefix("spot."): t.double() for name, t in load_file(GOLDEN).items() if "spot." in name}
    return stored["target"], stored["sources"], stored


@pytest.mark.parametrize("measure", [name for name in SIMILARITIES if name != "pairwise_cosine"])
def test_golden_similarities(golden, measure):
    target, sources, stored = golden
    torch.testing.assert_close(similarities(target, sources, measure), stored[measure], atol=1e-6, rtol=1e-6)


def test_every_row_with_every_row(golden):
    target, sources, _ = golden
    pairs = [[torch.cosine_similarity(a, b, dim=0) for a in target for b in source] for source in sources]
    expected = torch.tensor([sum(cosines) / len(cosines) for cosines in pairs])
    torch.testing.assert_close(similarities(target, sources, "pairwise_cosine"), expected.double())


def test_golden_mixture(golden):
    target, sources, stored = golden
    mixed = start(target, sources, "sum_token_cosine", top=0)
    torch.testing.assert_close(mixed, stored["mixed"], atol=1e-6, rtol=1e-6)


def test_the_most_similar(golden):
    target, sources, stored = golden
    assert stored["avgpool_cosine"].argsort(descending=True).tolist() == [1, 0, 2]
    assert torch.equal(start(target, sources), sources[1])
    first, second = stored["sum_token_cosine"][1], stored["sum_token_cosine"][0]
    expected = (first * sources[1] + second * sources[0]) / (first + second)
    torch.testing.assert_close(start(target, sources, "sum_token_cosine", 2), expected, atol=1e-6, rtol=1e-6)
    for more in (3, 9):
        mixed = start(target, sources, "sum_token_cosine", more)
        torch.testing.assert_close(mixed, stored["mixed"], atol=1e-6, rtol=1e-6)


def test_no_weights_and_wrong_shapes(golden):
    target, sources, _ = golden
    assert torch.equal(start(-sources[0], sources[:1]), sources[0]), "the only one is the most similar one"
    with raises(ValueError, "2 source prompts", "sum", "weights"):
        start(-sources.sum(0), sources[:2], top=0)
    with raises(ValueError, "measure", "'avgpool_cosine'", "'dot'"):
        similarities(target, sources, "dot")
    with raises(ValueError, "(4, 16)", "(3, 5, 16)"):
        similarities(target[:4], sources)


def saved(folder, prompt, backbone=None, **fields):
    model = mop_t5.attach(tiny() if backbone is None else backbone, "prompt_tuning", prefix_length=LENGTH, **fields)
    with torch.no_grad():
        model.mop.prompt.copy_(prompt)
    mop_t5.save(model, folder)
    return model


@pytest.fixture
def library(tmp_path):
    """Folder of a library, and its prompts."""
    torch.manual_seed(1)
    prompts = torch.randn(3, LENGTH, 24, dtype=torch.float64)
    for name, prompt in zip(NAMES, prompts, strict=True):
        saved(tmp_path / name, prompt)
        prompt_library.add(tmp_path / "library", name, tmp_path / name)
    return tmp_path / "library", prompts


def attach(library, target, backbone=None, **fields):
    fields = {"prefix_length": LENGTH, "init_library": str(library), "init_target": str(target), **fields}
    return mop_t5.attach(tiny() if backbone is None else backbone, "prompt_tuning", init="spot", **fields)


def test_a_prompt_starts_as_the_most_similar(library, tmp_path):
    folder, prompts = library
    noise = 0.3 * torch.randn(3, LENGTH, 24, dtype=torch.float64)
    saved(tmp_path / "target", prompts[2] + noise[0])
    assert torch.equal(attach(folder, tmp_path / "target").mop.prompt, prompts[2])
    assert torch.equal(attach(folder, tmp_path / "target", init_similarity="flat_cosine").mop.prompt, prompts[2])
    others = attach(folder, tmp_path / "target", init_prompts=["mnli", "qqp"]).mop.prompt
    best = similarities(prompts[2] + noise[0], prompts[:2]).argmax()
    assert torch.equal(others, prompts[best])
    mixed = attach(folder, tmp_path / "target", init_similarity="sum_token_cosine", init_top=2).mop.prompt
    torch.testing.assert_close(mixed.data, start(prompts[2] + noise[0], prompts, "sum_token_cosine", 2))

    # each scenario from what is most like its own
    wanted = torch.tensor([1, 0, 1])
    own = {"per_scenario": True, "scenarios": ["a", "b", "c"]}
    saved(tmp_path / "own", prompts[wanted] + noise, **own)
    assert torch.equal(attach(folder, tmp_path / "own", **own).mop.prompt, prompts[wanted])
    assert torch.equal(attach(folder, tmp_path / "target", **own).mop.prompt, prompts[2].expand(3, -1, -1))
    save_file({"prompt": prompts[1] + noise[1]}, tmp_path / "target.safetensors")
    assert torch.equal(attach(folder, tmp_path / "target.safetensors").mop.prompt, prompts[1])


def test_a_prompt_of_a_mixture_starts_any_other(library, tmp_path):
    """SPoT-g: prompt-tuning on all source tasks, then init="file"; it is in the library, too."""
    folder, prompts = library
    shared = tmp_path / "glue"
    saved(shared, prompts[0] + 1, scenarios=["mnli", "qqp"])
    prompt_library.add(folder, "glue", shared)
    for path in (shared, folder / "glue"):
        model = mop_t5.attach(tiny(), "prompt_tuning", prefix_length=LENGTH, init="file", init_file=str(path))
        assert torch.equal(model.mop.prompt, prompts[0] + 1)


def test_what_was_started_loads_without_the_library(library, tmp_path):
    folder, prompts = library
    saved(tmp_path / "target", prompts[1])
    model, inputs = attach(folder, tmp_path / "target"), batch()
    mop_t5.save(model, tmp_path / "saved")
    for name in NAMES:
        prompt_library.remove(folder, name)
    loaded = mop_t5.load(tiny(), tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    with raises(ValueError, "library'", "`mop-t5 prompts add`"):
        attach(folder, tmp_path / "target")


def test_what_does_not_fit(library, tmp_path):
    folder, prompts = library
    saved(tmp_path / "target", prompts[0])
    with raises(ValueError, "target'", "one tensor", "(2, 24)", "(3, 24)"):
        attach(folder, tmp_path / "target", prefix_length=2)
    with raises(ValueError, "target'", "another backbone"):
        attach(folder, tmp_path / "target", tiny(seed=1))
    saved(tmp_path / "other", prompts[0], tiny(seed=1))
    with raises(ValueError, "mnli'", "another backbone"):
        attach(folder, tmp_path / "other", tiny(seed=1))
    with raises(ValueError, "prompt 'cola'", "mnli, qqp, squad"):
        attach(folder, tmp_path / "target", init_prompts=["cola"])
    with raises(FileNotFoundError, "init_target", "nowhere'", "file", "folder"):
        attach(folder, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("init_library", "init='spot'"), {"init_target": "t"}),
        (ValueError, ("init_target", "init='spot'"), {"init_library": "l"}),
        (ValueError, ("init_library", "init='uniform'"), {"init": "uniform", "init_library": "l"}),
        (TypeError, ("init_library", "3"), {"init_library": 3}),
        (TypeError, ("init_prompts", "list", "'a'"), {"init_prompts": "a"}),
        (ValueError, ("init_similarity", "'avgpool_cosine'", "'dot'"), {"init_similarity": "dot"}),
        (ValueError, ("init_top", "0", "-1"), {"init_top": -1}),
    ],
)
def test_config_errors(error, message, given):
    both = {"init_library": "l", "init_target": "t"} if given.keys() & {"init_similarity", "init_top"} else {}
    with raises(error, *message):
        PromptTuningConfig(**{"init": "spot", **both, **given})
