#!/usr/bin/env bash
# torch 2.13.0, CPU. A forward pre-hook of a module stores an argument in a thread-local object, and a hook of a module
# inside reads it back in the same call. Compiled with fullgraph=True, the module reads what was stored before the call
# if the object is of a subclass of threading.local, without an error. A plain threading.local() and an ordinary object
# are right, and so is the subclass if the compiled module contains the hooked one or if a function around it is compiled.
# Guessed: a subclass behaves as its base. Seen: 0, 0, 0 where 1, 2, 3 were stored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import threading

import torch


class Subclass(threading.local):
    pass


class Ordinary:
    pass


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Identity()

    def forward(self, x):
        return self.inner(x)


def results(kind, wrap):
    slot = kind()
    slot.value = torch.tensor(0.0)
    model = Model()
    model.register_forward_pre_hook(lambda module, args: setattr(slot, "value", args[0]))
    model.inner.register_forward_hook(lambda module, args, output: output * 0 + slot.value)
    torch.compiler.reset()
    compiled = torch.compile(wrap(model), backend="eager", fullgraph=True)
    return [compiled(torch.tensor(float(number))).item() for number in (1, 2, 3)]


print("torch", torch.__version__)
seen = {
    "ordinary object": results(Ordinary, lambda model: model),
    "threading.local": results(threading.local, lambda model: model),
    "subclass": results(Subclass, lambda model: model),
    "subclass, module inside": results(Subclass, torch.nn.Sequential),
    "subclass, function": results(Subclass, lambda model: lambda x: model(x)),
}
for name, numbers in seen.items():
    print(f"{name}: {numbers}")
assert seen.pop("subclass") == [0.0, 0.0, 0.0], "changed"
assert all(numbers == [1.0, 2.0, 3.0] for numbers in seen.values()), "changed"
PYTHON
