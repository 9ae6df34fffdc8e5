"""Triton's own launch path on a machine without a GPU: a driver that notes launches stands for libcuda (stub_cuda.c).

Kernels are really compiled, loaded and launched by Triton; tensors lie on the CPU, and nothing reads them.
"""

import ctypes
import ctypes.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("stub_cuda.c")


class Parameter(NamedTuple):
    """One parameter as the kernel receives it."""

    raw: bytes

    @property
    def integer(self) -> int:
        return int.from_bytes(self.raw, "little", signed=True)

    @property
    def float32(self) -> float:
        return ctypes.c_float.from_buffer_copy(self.raw).value


class Launch(NamedTuple):
    """One launch as the driver receives it."""

    name: str
    grid: tuple[int, ...]
    threads: int
    shared: int
    allowed_shared: int
    stream: int
    context_device: int
    function_device: int
    parameters: list[Parameter]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("allowed_shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("context_device", ctypes.c_int),
        ("function_device", ctypes.c_int),
        ("parameters", ctypes.c_int),
        ("offsets", ctypes.POINTER(ctypes.c_ushort)),
        ("sizes", ctypes.POINTER(ctypes.c_ushort)),
        ("bytes", ctypes.c_ubyte * 4096),
    ]


def why_not() -> str | None:
    """Return why the stub cannot stand for the driver here, None where it can."""
    if shutil.which("cc") is None:
        return "needs a C compiler, cc"
    if ctypes.util.find_library("cuda") is not None or Path("/dev/nvidiactl").exists():
        return "a CUDA driver is here: it would be loaded instead of the stub"
    return None


class Stub:
    """The stub driver, and what torch would know of devices and streams."""

    def __init__(self, folder: Path):
        library = folder / "libcuda.so.1"
        command = ["cc", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True)
        self.folder = folder
        self.c = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # later loads of libcuda.so.1 find this one
        self.c.stub_launch.restype = ctypes.POINTER(_Launch)
        self.streams = {0: 0, 1: 0}  # the current stream of each device

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return self.c.stub_device()

    @device.setter
    def device(self, index: int) -> None:
        self.c.stub_set_device(index)

    def note_launches(self, on: bool) -> None:
        """Let launches be forgotten at once, as benchmarks do."""
        self.c.stub_note_launches(on)

    def taken(self) -> list[Launch]:
        """Return the launches since the last call, oldest first."""
        found = [self._as_launch(self.c.stub_launch(k).contents) for k in range(self.c.stub_count())]
        self.c.stub_clear()
        return found

    def _as_launch(self, raw: _Launch) -> Launch:
        assert tuple(raw.block)[1:] == (1, 1)
        parameters = [
            Parameter(bytes(raw.bytes[raw.offsets[k] : raw.offsets[k] + raw.sizes[k]])) for k in range(raw.parameters)
        ]
        return Launch(
            raw.name.decode(),
            tuple(raw.grid),
            raw.block[0],
            raw.shared,
            raw.allowed_shared,
            raw.stream or 0,
            raw.context_device,
            raw.function_device,
            parameters,
        )


@contextmanager
def active(stub: Stub) -> Iterator[None]:
    """Make the stub Triton's driver, and let backend "triton" take CPU tensors, within the block."""
    from triton import knobs
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    from mop_kernels import backends

    class Driver(nvidia.CudaDriver):
        """Triton's driver, with devices and streams of the stub where it would ask torch."""

        def __init__(self):
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_current_device = stub.c.stub_device

        def set_current_device(self, device):
            stub.device = device

        def get_current_stream(self, device):
            return stub.streams[device]

        def get_device_capability(self, device=None):
            return 9, 0

    before = driver._active, backends.interpreting
    with knobs.nvidia.scope():
        knobs.nvidia.libcuda_path = str(stub.folder)
        driver.set_active(Driver())
    backends.interpreting = lambda: True
    try:
        yield
    finally:
        driver._active, backends.interpreting = before
