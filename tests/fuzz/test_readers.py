"""Mutated files: every reader returns or raises a clear error. `make fuzz` tries more of them."""

import random

import pytest
from fuzzing import READERS, check, mutated, try_content

MUTATIONS = {True: 5, False: 50}  # of each file, by Reader.is_slow


@pytest.fixture(params=READERS)
def sample(request, tmp_path):
    """A reader and its valid folder."""
    reader = READERS[request.param]
    valid = tmp_path / "valid"
    valid.mkdir()
    reader.write(valid)
    return reader, valid


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_read_or_refused(sample, tmp_path):
    reader, valid = sample
    assert check(reader, valid) == ""
    messages = set()
    for file in reader.files:
        chance, content = random.Random(file), (valid / file).read_bytes()
        for number in range(MUTATIONS[reader.is_slow]):
            try:
                messages.add(try_content(reader, valid, tmp_path / "mutated", file, mutated(content, chance)))
            except BaseException as error:
                raise AssertionError(f"mutation {number} of {file}") from error
    assert messages - {""}  # some were refused
