"""What test_accelerate_peft.py runs in two processes: a LoKr layer of PEFT under DDP, accelerated."""

import torch
from peft import LoKrConfig, get_peft_model
from torch import distributed, nn

import mop_kernels as mk


def gradients(rows: torch.Tensor, *, plain: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 36), nn.Tanh(), nn.Linear(36, 12))
    model = get_peft_model(base, LoKrConfig(r=2, decompose_factor=4, target_modules=["0", "2"], init_weights=False))
    trained: nn.Module = model
    if not plain:
        assert len(mk.accelerate(model).accelerated) == 2
        trained = nn.parallel.DistributedDataParallel(model)
    trained(rows).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def run() -> None:
    distributed.init_process_group("gloo")
    rows = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    expected = gradients(rows, plain=True)
    found = gradients(rows.chunk(2)[distributed.get_rank()], plain=False)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    distributed.destroy_process_group()
    print("as one process", flush=True)
