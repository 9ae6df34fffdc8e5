"""The direction of imports, and that mop_kernels imports where triton, transformers or its own binary are absent."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each may import those below it: the mathematics at the bottom, what trains at the top.
ORDER = (
    "mop_t5",
    "mop_kernels",
    "mop_kernels.conversion",
    "mop_kernels.layers",
    "mop_kernels.initialisation",
    "mop_kernels.explain",
    "mop_kernels.functional",
    "mop_kernels.attempt",
    "mop_kernels.sharding",
    "mop_kernels.validation",
    "mop_kernels.autograd",
    "mop_kernels.rules",
    "mop_kernels.flop_counts",
    "mop_kernels.backends",
    "mop_kernels.self_check",
    "mop_kernels.ops",
    "mop_kernels.triton_kernels",
    "mop_kernels._C",
    "mop_kernels._C_cuda",
    "mop_kernels.multiply_adds",
    "mop_kernels.reference",
)
BESIDE = {  # tools that stand outside the order: what of the package they may import
    "mop_kernels.testing": {"mop_kernels.reference", "mop_kernels.backends"},
    "mop_kernels.env_report": set(ORDER[1:]),
    "mop_kernels.check": {*ORDER[1:], "mop_kernels.testing", "mop_kernels.env_report"},
}
NEVER = {  # third-party packages a part must not import, at any depth
    "mop_kernels": {"transformers", "mop_t5", "accelerate", "jieba", "numpy", "safetensors"},
}


def modules() -> dict[str, Path]:
    found = {}
    for source in (ROOT, ROOT / "python"):
        for package in ("mop_kernels", "mop_t5"):
            for path in sorted((source / package).rglob("*.py")):
                parts = path.relative_to(source).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> set[str]:
    """Absolute names of all modules that the file imports, at its top or inside functions."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            target = ".".join(filter(None, [base if node.level else "", node.module]))
            submodules = {f"{target}.{alias.name}" for alias in node.names}
            known = {name for name in submodules if name in MODULES or name in ORDER}
            found |= known
            if len(known) < len(submodules):  # something other than a module is taken from it
                found.add(target)
    return found


def place(module: str) -> str:
    """The entry of ORDER (or BESIDE) that a module belongs to."""
    for name in (*BESIDE, *sorted(ORDER, key=len, reverse=True)):
        if module == name or (module.startswith(name + ".") and name != "mop_kernels"):
            return name
    raise AssertionError(f"{module} has no place in the order of imports: give it one in {Path(__file__).name}")


def test_the_parser_sees_every_form_of_import():
    assert "mop_kernels.ops" in imports_of("mop_kernels.rules")  # from . import ops
    assert "mop_kernels._C" in imports_of("mop_kernels.backends")  # inside a try
    assert "mop_kernels.functional" in imports_of("mop_kernels.layers")  # from .functional import ...
    assert "torch" in imports_of("mop_kernels.reference")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    own = place(module)
    for target in imports_of(module):
        if target.split(".")[0] not in ("mop_kernels", "mop_t5"):
            continue
        other = place(target)
        if own in BESIDE:
            assert other in BESIDE[own], f"{module} imports {target}"
        elif other != own:
            assert other not in BESIDE, f"{module} imports {target}, which is for tests and reports"
            assert ORDER.index(other) > ORDER.index(own), f"{module} imports {target}, which stands above it"


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in NEVER])
def test_kernels_know_nothing_of_the_toolkit(module):
    forbidden = NEVER[module.split(".")[0]]
    assert not forbidden & {target.split(".")[0] for target in imports_of(module)}


def run_without(*blocked: str, code: str) -> str:
    """Run code in a fresh interpreter where the named modules are not to be found."""
    absent = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"  # None there halts the import
    done = subprocess.run([sys.executable, "-c", absent + code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import torch, mop_kernels as mk
layer = mk.PHMLinear(8, 8, rank=1)
with mk.use_backend("reference"):
    layer(torch.randn(2, 8)).sum().backward()
print(*mk.available_backends())
"""


def test_without_triton():
    assert "reference" in run_without("triton", code=USE)


def test_without_transformers():
    assert "reference" in run_without("transformers", "safetensors", "jieba", code=USE)


def test_without_the_compiled_module():
    said = run_without("mop_kernels._C", "mop_kernels._C_cuda", code=USE)
    assert said.split() == ["reference"]


def test_a_compiled_module_that_cannot_load_is_reported():
    """Built for another torch: named backends say what the loader said."""
    said = run_without(
        code="""
import importlib.abc, importlib.machinery
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == "mop_kernels._C":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError("undefined symbol: aoti_torch_something")
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Broken())
import mop_kernels as mk, torch
try:
    mk.phm_weight(torch.ones(1, 1, 1), torch.ones(1, 1, 1), backend="cpu")
except RuntimeError as error:
    print(error)
"""
    )
    assert "undefined symbol: aoti_torch_something" in said
    assert "Available: reference" in said


def test_import_is_light():
    """No toolkit, and not torch's compiler either, which takes longer than torch itself."""
    heavy = ("transformers", "mop_t5", "triton", "torch._dynamo", "torch.distributed.tensor")
    said = run_without(code=f"import mop_kernels; print(*(m for m in {heavy} if m in sys.modules))")
    assert not said.strip()
