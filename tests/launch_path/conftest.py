"""The stub driver as a fixture; skipped where it cannot stand for the real one."""

import pytest
import stub_driver

from mop_kernels import backends


@pytest.fixture(scope="session")
def built_stub(tmp_path_factory):
    pytest.importorskip("triton")
    if backends.interpreting():
        pytest.skip("Triton launches nothing under TRITON_INTERPRET=1")
    reason = stub_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    return stub_driver.Stub(tmp_path_factory.mktemp("stub_driver"))


@pytest.fixture
def stub(built_stub):
    """The stub as Triton's driver, without launches of earlier tests, and the operations without notes of them."""
    from mop_kernels.triton_kernels import IMPLEMENTATIONS

    with stub_driver.active(built_stub):
        for implementation in IMPLEMENTATIONS.values():
            implementation.programs.clear()
        built_stub.taken()
        built_stub.streams.update({0: 0, 1: 0})
        built_stub.device = 0
        yield built_stub
        for implementation in IMPLEMENTATIONS.values():
            implementation.programs.clear()
