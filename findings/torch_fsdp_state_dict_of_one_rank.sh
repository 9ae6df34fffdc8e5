#!/usr/bin/env bash
# torch 2.13.0, CPU, gloo. Two processes share a model by fully_shard (FSDP2) and evaluate it under no_grad. Then one
# process alone calls model.state_dict(), as code does that saves in the first process, and both evaluate again. The
# call frees the gathered weights of the root on this process only. So its next forward pass gathers them, and the other
# process does not take part: here the gathers of two layers meet, and gloo reports a size that does not match.
# Guessed: state_dict() of sharded tensors changes nothing that the other processes see, because it communicates nothing.
# Seen: the second evaluation fails. It is right if both processes call state_dict(), or none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -c "import torch, torch.distributed.fsdp; print('torch', torch.__version__)"
cat > "$folder/program.py" <<'PYTHON'
import os
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

callers, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 64)))
x = torch.ones(1, 4)
with torch.no_grad():
    expected = model(x)
for module in (model[1], model):
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
with torch.no_grad():
    assert torch.allclose(model(x), expected)
    if str(rank) in callers:
        model.state_dict()
    right = torch.allclose(model(x), expected)
os._exit(0 if right else 3)
PYTHON
evaluated() {  # the ranks that call state_dict()
    local status=0 first second
    rm -f "$folder/store"
    timeout 120 "$folder/venv/bin/python" "$folder/program.py" "$1" "$folder/store" 0 > "$folder/0.log" 2>&1 & first=$!
    timeout 120 "$folder/venv/bin/python" "$folder/program.py" "$1" "$folder/store" 1 > "$folder/1.log" 2>&1 & second=$!
    wait "$first" || status=1
    wait "$second" || status=1
    return "$status"
}
for callers in none 01; do
    evaluated "$callers" || { echo "changed: ranks $callers call state_dict(), and the evaluation fails"; cat "$folder"/?.log; exit 1; }
    echo "ranks $callers call state_dict(): the second evaluation is right"
done
if evaluated 0; then echo "changed: one rank may call state_dict()"; exit 1; fi
echo "rank 0 alone calls state_dict(): the second evaluation fails"
grep -h "size doesn't match\|Connection\|mismatch" "$folder"/?.log | head -1 | cut -c1-200
