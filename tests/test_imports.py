"""The direction of imports in all three packages, and mop_kernels without triton, transformers or its own binary."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each room may import the rooms below it: the laboratory at the top, the mathematics at the bottom. Rooms of one line
# may not import each other.
ORDER = """
mop_lab.commands
mop_lab.report mop_lab.demo mop_lab.task_moe
mop_lab.attempt
mop_lab.analysis
mop_lab.suites
mop_lab.finished_runs
mop_lab
mop_t5.cli
mop_t5.training mop_t5.serving
mop_t5.evaluation
mop_t5.operations
mop_t5.methods
mop_t5.attachment
mop_t5.storage
mop_t5.backbone mop_t5.data mop_t5.plots
mop_t5.files mop_t5.checks
mop_kernels.check
mop_kernels.env_report
mop_kernels.step_truth
mop_kernels.truth
mop_kernels.testing
mop_kernels
mop_kernels.acceleration
mop_kernels.conversion
mop_kernels.layers
mop_kernels.initialisation
mop_kernels.explain
mop_kernels.step mop_kernels.functional
mop_kernels.operation
mop_kernels.step_validation
mop_kernels.sharding mop_kernels.experts
mop_kernels.validation
mop_kernels.autograd
mop_kernels.rules
mop_kernels.step_rules
mop_kernels.rule
mop_kernels.multiply_adds
mop_kernels.backends
mop_kernels.self_check
mop_kernels.ops
mop_kernels.step_ops
mop_kernels.linear_cross_entropy_pieces
mop_kernels.derivatives
mop_kernels.triton_kernels
mop_kernels._C mop_kernels._C_cuda
mop_kernels.step_reference mop_kernels.reference
"""
LEVELS = {room: level for level, line in enumerate(ORDER.strip().splitlines()) for room in line.split()}
FACADE = "mop_t5"  # the public names, each imported on first use; every room may use them
NEVER = {  # packages that a part must not import, at any depth
    "mop_kernels": {"transformers", "mop_t5", "mop_lab", "accelerate", "jieba", "numpy", "safetensors"}
    | {"peft", "lycoris", "adapters"},
    "mop_t5": {"mop_lab"},
}
PACKAGES = ("mop_kernels", "mop_t5", "mop_lab")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        source = ROOT if package == "mop_kernels" else ROOT / "python"
        for path in sorted((source / package).rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> set[str]:
    """Return the absolute names of all modules that the file imports, at its top or inside functions."""
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
            known = {name for name in submodules if name in MODULES or name in LEVELS}
            found |= known
            if len(known) < len(submodules):  # something other than a module is taken from it
                found.add(target)
    return found


IMPORTS = {module: imports_of(module) for module in MODULES}


def room(module: str) -> str:
    """Return the entry of ORDER that a module belongs to."""
    fitting = [name for name in LEVELS if module == name or (module.startswith(name + ".") and name not in PACKAGES)]
    assert fitting, f"{module} has no place in the order of imports: give it one in {Path(__file__).name}"
    return max(fitting, key=len)


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Return the imports that do not point to a room below."""
    found = []
    for module, targets in imports.items():
        for target in sorted(targets):
            if FACADE in (module, target) or target.split(".")[0] not in PACKAGES or room(module) == room(target):
                continue
            if LEVELS[room(target)] <= LEVELS[room(module)]:
                found.append(f"{module} -> {target}")
    return found


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Return the circles of imports between modules, at the top of files or inside functions."""
    inner = {module: targets & set(imports) for module, targets in imports.items()}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_parser_sees_every_form_of_import():
    assert "mop_kernels.ops" in IMPORTS["mop_kernels.rules"]  # from . import ops
    assert "mop_kernels.triton_kernels" in IMPORTS["mop_kernels.ops"]  # inside a function
    assert "mop_kernels.functional" in IMPORTS["mop_kernels.layers"]  # from .functional import ...
    assert "torch" in IMPORTS["mop_kernels.reference"]
    assert "mop_t5.storage.adapter_folder" in IMPORTS["mop_t5.operations.attach"]  # from mop_t5.storage import ...


def test_imports_point_downward():
    assert not upward(IMPORTS)


def test_no_imports_form_a_circle():
    assert not circles(IMPORTS)


def test_the_checks_see_an_arrow_upward_and_a_circle():
    assert upward({"mop_t5.files": {"mop_t5.cli.main"}}) == ["mop_t5.files -> mop_t5.cli.main"]
    assert upward({"mop_t5.data.corpus": {"mop_t5.plots.figures"}}) == ["mop_t5.data.corpus -> mop_t5.plots.figures"]
    looped = {
        "mop_t5.files": {"mop_t5.data"},
        "mop_t5.data": {"mop_t5.data.corpus"},
        "mop_t5.data.corpus": {"mop_t5.files"},
    }
    assert set(circles(looped)) == set(looped)


def test_no_part_knows_what_stands_above_it():
    for module, targets in IMPORTS.items():
        assert not NEVER.get(module.split(".")[0], set()) & {target.split(".")[0] for target in targets}, module


def test_no_test_file_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.startswith("test_")], f"{path}: put it into tests/helpers"


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
