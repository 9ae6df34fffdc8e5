"""Whether Triton's interpreter runs the kernels: by the variable before they are imported, by what they are after."""

import os

import pytest
import torch
from errors import says
from forks import forks_of

from mop_kernels import backends

SETTINGS = {"on": True, "yes": True, "TRUE": True, "0": False, "": False, "t": False}

pytestmark = [
    pytest.mark.skipif(not backends._TRITON_IS_INSTALLED, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels run without the interpreter"),
]

START = """
import os, sys, torch
import mop_kernels as mk
from mop_kernels import backends

def call():
    try:
        mk.phm_weight(torch.ones(1, 1, 1), torch.ones(1, 2, 2), backend="triton")
        return "ran"
    except RuntimeError as error:
        return str(error)
"""


@pytest.fixture(scope="module")
def run():
    """Run code in a process that has imported torch and mop_kernels, but not triton."""
    with forks_of(START, {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}) as forks:
        yield lambda code, setting=None: forks.run(code, **({} if setting is None else {"TRITON_INTERPRET": setting}))


@pytest.mark.parametrize("setting", SETTINGS, ids=repr)
def test_every_word_that_triton_knows(setting, run):
    """Asked without triton, with triton, and with the kernels imported; the call runs or says what to set."""
    code = """
print("triton" in sys.modules, backends.interpreting())
import triton
print(triton.knobs.runtime.interpret, backends.interpreting())
print(call())
import mop_kernels.triton_kernels as kernels
print(kernels.INTERPRETED, backends.interpreting())
"""
    before, with_triton, said, after = run(code, setting).splitlines()
    expected = SETTINGS[setting]
    assert before == f"False {expected}"
    assert with_triton == after == f"{expected} {expected}"
    assert said == "ran" if expected else "TRITON_INTERPRET=1" in said


def test_a_knob_counts_as_the_variable_does(run):
    code = """
import triton
triton.knobs.runtime.interpret = False
print(backends.interpreting())
"""
    assert run(code, "1") == "False"


SET_LATE = "TRITON_INTERPRET was set after triton was imported"


@pytest.mark.parametrize("imported", ["triton", "mop_kernels.triton_kernels"])
def test_a_variable_that_is_set_too_late(imported, run):
    said = run(f"import {imported}\nos.environ['TRITON_INTERPRET'] = 'yes'\nprint(backends.interpreting(), call())")
    assert said.startswith("False ")
    assert SET_LATE in said
    assert said.count("TRITON_INTERPRET") == 1


def test_a_variable_that_is_set_too_late_where_a_gpu_is(run):
    code = """
import mop_kernels.triton_kernels
os.environ["TRITON_INTERPRET"] = "on"
torch.cuda.is_available = lambda: True
print(call())
"""
    says(run(code), "cuda", "cpu", SET_LATE)


def test_a_variable_that_is_set_in_time(run):
    assert run("os.environ['TRITON_INTERPRET'] = 'On'\nprint(call())") == "ran"


@pytest.mark.parametrize("setting", ["0", None])
def test_kernels_stay_interpreted(setting, run):
    code = f"""
print(call())
os.environ.pop("TRITON_INTERPRET")
if {setting!r}:
    os.environ["TRITON_INTERPRET"] = {setting!r}
print(backends.interpreting(), call())
"""
    assert run(code, "1").splitlines() == ["ran", "True ran"]


def test_triton_and_kernels_that_disagree_are_not_mixed(run):
    """Triton's library would be interpreted, the kernels compiled: every launch would fail inside Triton."""
    code = """
import triton
del os.environ["TRITON_INTERPRET"]
try:
    import mop_kernels.triton_kernels
except RuntimeError as error:
    print(error)
"""
    says(run(code, "true"), "TRITON_INTERPRET", "import of triton")


def test_asking_costs_less_than_a_microsecond(run):
    code = """
import timeit
import mop_kernels.triton_kernels
print(min(timeit.repeat(backends.interpreting, number=10000, repeat=5)) / 10000)
"""
    assert float(run(code)) < 1e-6
