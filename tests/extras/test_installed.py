"""The packages of this folder's tests are there, in the versions of requirements.txt."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def test_versions():
    wanted = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#"))
    try:
        found = {name: version(name) for name in wanted}
    except PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: make test-extras")
    assert found == wanted
