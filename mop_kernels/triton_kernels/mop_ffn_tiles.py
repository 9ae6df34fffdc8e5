"""What the launches of mop_ffn depend on: the sizes of a call, its group strides, and the blocks of each map.

With the launch configurations of the kernels in mop_ffn_gradients.py; the others' stand beside their launchers.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..reference import group_sizes
from .arithmetic import power_of_2
from .device_functions import ASSERTS, Phm
from .launch import input_precision


def group_strides(tensor: Tensor | None) -> tuple[int, int]:
    """How far to step for the next layer and the next expert: not at all where the group dim is 1."""
    if tensor is None:
        return 0, 0
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape[:2], tensor.stride()))


def maps_of_list(ups: list, num_maps: int) -> list[list]:
    """The flat list of an op, one list an up map."""
    width = len(ups) // num_maps
    return [ups[k * width : (k + 1) * width] for k in range(num_maps)]


def groups_of(x: Tensor, down: list[Tensor], maps: list[list[Tensor]], experts: Tensor | None) -> tuple[int, int]:
    """(layers, experts asked for)."""
    layers, num_experts = group_sizes(x, down, maps[:1])  # all maps have the shapes of one
    return layers, num_experts if experts is None else experts.shape[0]


def asked_of(x: Tensor, down: list, maps: list[list], experts: Tensor | None) -> tuple[Tensor, int] | None:
    """What the kernels read: the ids and the number of experts that there are. None: all experts are asked for."""
    return None if experts is None else (experts, group_sizes(x, down, maps[:1])[1])


def checks(asked: tuple | None) -> dict[str, bool]:
    """Launch options: the ids are checked where there are any, all other launches pay nothing."""
    return {} if asked is None else ASSERTS


SIDES = ("terms", "rank", "g_in", "g_out", "loc_in", "loc_out")


def sizes_of_map(phm: list[Tensor], grads: list[Tensor]) -> dict[str, int]:
    """What a launch for one level's maps depends on; grads are (L, k, n, out), one a map."""
    layers, num_experts, rows = grads[0].shape[:3]
    return {"pairs": layers * num_experts, "maps": len(grads), "rows": rows} | sides_of(phm)


def sizes_of(x: Tensor, down: list[Tensor], up: list[Tensor], num_maps: int, groups: tuple[int, int]) -> dict[str, int]:
    """What a launch for both levels depends on."""
    sizes = {"pairs": groups[0] * groups[1], "maps": num_maps, "rows": x.shape[2]}
    return sizes | sides_of(down, "down_") | sides_of(up, "up_")


def sides_of(phm: list[Tensor], level: str = "") -> dict[str, int]:
    rule_in, rule_out, local = phm[:3]
    terms, g_in, rank = rule_in.shape[2:]
    values = (terms, rank, g_in, rule_out.shape[4], *local.shape[3:])
    return {level + name: value for name, value in zip(SIDES, values)}


def maps_of(sizes: dict[str, int]) -> tuple[Phm, Phm]:
    """The down and the up map, without blocks."""
    return tuple(Phm(*(sizes[f"{side}_{name}"] for name in SIDES)) for side in ("down", "up"))


def block(size: int, most: int) -> int:
    """A power of two for a side of `size`: all of it, or as much as there is room for."""
    return max(1, min(power_of_2(size), 1 << max(most, 1).bit_length() - 1))


# Numbers in a tile: with 128 threads at most 64 registers of each thread; 32 in float32, whose products keep their
# operands in registers as well.
TILE = {torch.float32: 4096, torch.bfloat16: 8192, torch.float16: 8192}


def size_of_hidden(down: Phm, up: Phm) -> int:
    """Columns of the hidden rows, with the padding of either view."""
    return max(power_of_2(down.g_out) * power_of_2(down.loc_out), power_of_2(up.g_in) * max(16, power_of_2(up.loc_in)))


def rows_of_a_block(dtype: torch.dtype) -> int:
    """8 where products are plain multiply-adds, the 16 of an instruction where they are matrix instructions."""
    return 8 if dtype is torch.float32 and input_precision() == "ieee" else 16


def fits(sizes: dict[str, int], dtype: torch.dtype) -> bool:
    """Whether the kernels serve these sizes: four hidden rows or more on chip, all r of a term in a block.

    Otherwise a call takes the three stages as batched matrix products of torch, which is what the reference op does.
    """
    down, up = maps_of(sizes)
    return 4 * size_of_hidden(down, up) <= TILE[dtype] and max(down.padded_rank, up.padded_rank) <= 32


def even_block(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides `size`, if it is 16 or more; otherwise as `block`."""
    return min(most, size & -size) if size % 16 == 0 else block(size, most)


def with_blocks(sizes: dict[str, int], config: dict[str, int], dtype: torch.dtype) -> tuple[Phm, Phm]:
    """Both maps with the blocks of a configuration: whole sides where the hidden rows are, as those stay on chip."""
    down, up = maps_of(sizes)
    rows, block_v = config["BLOCK_ROWS"], config["BLOCK_V"]
    tile = TILE[dtype]
    # at least one hidden number per thread: Triton 3.6 to 3.8 end in an assertion on a smaller tl.gather (view_as_up)
    v = max(power_of_2(down.loc_out), 32 * config["num_warps"] // (rows * power_of_2(down.g_out)))
    j = block(down.size_j, min(32, tile // (v * max(rows, config["BLOCK_U"]))))
    down = replace(
        down,
        block_j=j,
        block_a=block(down.g_in, 16),
        block_c=power_of_2(down.g_out),
        block_u=config["BLOCK_U"],
        block_v=max(v, 16 // j),
    )
    u = max(16, power_of_2(up.loc_in))
    j = block(up.size_j, min(32, tile // (rows * max(u, block_v)), tile // (u * block_v)))
    up = replace(
        up,
        block_j=j,
        block_a=power_of_2(up.g_in),
        block_c=min(config["BLOCK_C"], power_of_2(up.g_out)),
        block_u=u,
        block_v=max(block_v, 16 // j),
    )
    return down, up


def gradient_blocks(sizes: dict[str, int], config: dict[str, int], kernel: str) -> Phm:
    """The blocks of "rows" or of "weights": 16 of a side that is summed over, much of one that is a result's."""
    P = Phm(*(sizes[name] for name in SIDES))
    rows, u, v = config["BLOCK_ROWS"], config["BLOCK_U"], config["BLOCK_V"]
    most = TILE[torch.float32]  # these kernels hold more tiles at once
    a, c = block(P.g_in, 16), block(P.g_out, 16)
    j = block(P.size_j, min(32, most // (max(rows, u) * max(rows, v))))
    if kernel == "rows":
        a = block(P.g_in, most // (rows * u))
    else:
        j = max(min(j, 8), P.padded_rank)  # a program has all r of a term
        c = block(P.g_out, most // (rows * max(j, v)))
    return replace(P, block_j=j, block_a=a, block_c=c, block_u=u, block_v=v)


def heuristic_rows(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    return {
        "BLOCK_ROWS": rows_of_a_block(dtype),
        "BLOCK_U": max(16, even_block(sizes["loc_in"], 16)),
        "BLOCK_V": max(16, even_block(sizes["loc_out"], 16 if dtype is torch.float32 else 32)),
        "num_warps": 4,
        "num_stages": 2,
    }


def candidates_rows(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    return _variants(heuristic_rows(sizes, dtype, multiprocessors), sizes)


def heuristic_weights(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    own = heuristic_rows(sizes, dtype, multiprocessors) | {"BLOCK_ROWS": 16}  # rows are summed over
    return own if sizes["rank"] <= 8 else own | {"BLOCK_V": 16}


def candidates_weights(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    return _variants(heuristic_weights(sizes, dtype, multiprocessors), sizes)


def _variants(own: dict[str, int], sizes: dict[str, int]) -> list[dict[str, int]]:
    rows, v = own["BLOCK_ROWS"], max(16, even_block(sizes["loc_out"], 48 - own["BLOCK_V"]))
    changes = [{"num_warps": 8}, {"BLOCK_ROWS": 2 * rows}, {"BLOCK_ROWS": 2 * rows, "num_warps": 8}]
    changes += [{"BLOCK_V": v}, {"BLOCK_V": v, "num_warps": 8}, {"num_stages": 1}, {"num_stages": 3}]
    return [own | change for change in changes]
