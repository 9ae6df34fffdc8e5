"""Collect the facts for a bug report: versions, hardware, backends and the build of the compiled module.

python -m mop_kernels.env_report
"""

import platform
from importlib import metadata

import torch

from . import __version__, backends

PACKAGES = ("torch", "triton", "transformers", "accelerate", "tokenizers", "safetensors", "jieba")


def collect() -> dict[str, str]:
    """Return facts by name, without any path, host name or user name."""
    facts = {"mop_kernels": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["cpu"] = f"{cpu_name()}, {torch.get_num_threads()} threads"
    gpus = range(torch.cuda.device_count())
    facts["gpu"] = ", ".join(map(_gpu, gpus)) or "none"
    facts["backends"] = ", ".join(backends.available_backends())
    for name in backends.NAMES:
        reason = backends.why_not(name)
        if reason is not None:
            facts[f"no {name}"] = reason
            continue
        for index in gpus if name in ("triton", "cuda") else ():
            reason = backends.why_not(name, torch.device("cuda", index))
            if reason is not None:
                facts[f"no {name} on cuda:{index}"] = reason
    facts |= {f"compiled module: {key}": str(value) for key, value in backends.build_info().items()}
    return facts


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} ({major}.{minor})"


def cpu_name() -> str:
    """Return the model of the CPU, or the architecture if the system does not tell the model."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    for name, value in collect().items():
        print(f"{name:<36} {value}")
