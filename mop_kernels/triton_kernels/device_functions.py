"""Provide the device functions that the kernels of PHM maps share: tiles, products with the rules, activations.

The kernels view a row of n columns as (g, w): g is a side of the rule, w a side of the local. A tile of rows is kept as
`[g, (n w)]`, so that a product with a rule is one matrix product. The result reshapes to `[j, n, w]`, the batch of one
matrix product with a local. j = (i, r) joins the term i and the rank r in one axis. r is padded to a power of two; the
factors are zero where r is padding.

A matrix product needs an inner size of 16. If the side of a rule is smaller, a tile is folded: f = 16/side stretches of
w are stacked in its rows, `[(g f), (n w/f)]`. The tile of the rule is then block-diagonal, `[(j f), (g f')]`: its
entries with f != f' are zero.
"""

from dataclasses import dataclass, replace

import triton
import triton.language as tl
from torch import Tensor

# The host functions below replace triton's own cdiv and next_power_of_2, which cost a call some microseconds each.


def blocks(size: int, block: int) -> int:
    """Return the number of blocks that cover `size`."""
    return -(-size // block)


def power_of_2(size: int) -> int:
    """Return the least power of two that is not below `size`; 1 for 0."""
    return 1 << max(0, size - 1).bit_length()


ASSERTS = {"debug": True, "sanitize_overflow": False}
"""Launch options of a kernel that asserts the ids in a tensor, because the host cannot read a tensor on a GPU.

Without `debug` Triton drops the asserts. With `debug` alone, Triton would also check every 32-bit addition and product
for overflow: 82 barriers instead of 17 in the code of the bank's forward. An assert alone adds some 40 instructions to
a kernel of 2,000, and no register. A trap in inline assembly would save little and could not name the argument.
"""


@dataclass(frozen=True)
class Phm:
    """Sizes of one map, as in reference.py, and the block sizes (powers of two) of a kernel."""

    terms: int
    rank: int
    g_in: int
    g_out: int
    loc_in: int
    loc_out: int
    block_j: int = 1
    block_a: int = 1
    block_c: int = 1
    block_u: int = 1
    block_v: int = 1

    @classmethod
    def of(cls, rule_in: Tensor, rule_out: Tensor | None, local: Tensor) -> "Phm":
        """Return the sizes of these factors, which may have group dims. rule_out is None for a full rule."""
        terms, g_in, rank = rule_in.shape[-3:]
        return cls(terms, rank, g_in, rank if rule_out is None else rule_out.shape[-1], *local.shape[-2:])

    def with_blocks(self, j: int, a: int, c: int, u: int, v: int) -> "Phm":
        """Return the map with these block sizes."""
        return replace(self, block_j=j, block_a=a, block_c=c, block_u=u, block_v=v)

    @property
    def padded_rank(self) -> int:
        """Rank, padded to a power of two."""
        return power_of_2(self.rank)

    @property
    def size_j(self) -> int:
        """Size of the axis j: terms times the padded rank."""
        return self.terms * self.padded_rank

    @property
    def d_in(self) -> int:
        """Columns of an input row."""
        return self.g_in * self.loc_in

    @property
    def d_out(self) -> int:
        """Columns of an output row."""
        return self.g_out * self.loc_out

    @property
    def fold_j(self) -> int:
        """Fold f of a tile whose rows are j."""
        return max(1, 16 // self.block_j)

    @property
    def fold_a(self) -> int:
        """Fold f of a tile whose rows are a."""
        return max(1, 16 // self.block_a)

    @property
    def fold_c(self) -> int:
        """Fold f of a tile whose rows are c."""
        return max(1, 16 // self.block_c)


# A device function never returns None: Triton 3.6 cannot call such a function. Callers test for None before the call.


@triton.jit
def select(tensors, index):
    """Return tensors[index], from a tuple of pointers."""
    tl.static_assert(tensors[0] is not None, "select returns no None")
    chosen = tensors[0]
    for k in tl.static_range(1, len(tensors)):
        chosen = tl.where(index == k, tensors[k], chosen)
    return chosen


INTERPRETED = not isinstance(select, triton.JITFunction)  # like all kernels here; backends.interpreting() reads it


@triton.jit
def of_pair(pointer, strides, layer, expert):
    """Return the address of a pair's part of a tensor (1|L, 1|E, ...); layer and expert are int64."""
    tl.static_assert(pointer is not None, "of_pair returns no None")
    return pointer + (layer * strides[0] + expert * strides[1])


@triton.jit
def group_of(pair, num_experts, experts):
    """Return (layer, expert) of a pair in (L, k), int64. The expert is an id if `experts` is given, or else a place.

    experts: (pointer to the ids, number of experts of the bank), or None for all experts.
    """
    layer, expert = (pair // num_experts).to(tl.int64), (pair % num_experts).to(tl.int64)
    if experts is not None:
        expert = tl.load(experts[0] + expert)
        assert (expert >= 0) & (expert < experts[1]), "experts must lie in 0..E-1, E the number of experts"
    return layer, expert


@triton.jit
def row_tile(
    first_row, first_g, first_w, rows, G, W,
    BLOCK_ROWS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Return row, column and mask of the tile [(g f), (n w/f)] of rows viewed as (G, W)."""
    NARROW: tl.constexpr = BLOCK_W // FOLD
    gf = tl.arange(0, BLOCK_G * FOLD)[:, None]
    nw = tl.arange(0, BLOCK_ROWS * NARROW)[None, :]
    n = first_row + nw // NARROW
    g = first_g + gf // FOLD
    w = first_w + gf % FOLD * NARROW + nw % NARROW
    return n, g * W + w, (n < rows) & (g < G) & (w < W)


@triton.jit
def load_rows(pointer, row, column, mask, WIDTH):
    """Return the tile of rows of WIDTH columns; zero outside the mask."""
    return tl.load(pointer + (row.to(tl.int64) * WIDTH + column), mask=mask, other=0.0)


@triton.jit
def unfold(tile, BLOCK_ROWS: tl.constexpr, FOLD: tl.constexpr):
    """Reshape [(j f), (n w/f)] to [j, n, w]."""
    B: tl.constexpr = tile.shape[0] // FOLD
    NARROW: tl.constexpr = tile.shape[1] // BLOCK_ROWS
    tile = tl.reshape(tile, (B, FOLD, BLOCK_ROWS, NARROW))
    return tl.reshape(tl.permute(tile, (0, 2, 1, 3)), (B, BLOCK_ROWS, FOLD * NARROW))


@triton.jit
def fold(tile, FOLD: tl.constexpr):
    """Reshape [j, n, w] to [(j f), (n w/f)]."""
    B: tl.constexpr = tile.shape[0]
    N: tl.constexpr = tile.shape[1]
    NARROW: tl.constexpr = tile.shape[2] // FOLD
    tile = tl.permute(tl.reshape(tile, (B, N, FOLD, NARROW)), (0, 2, 1, 3))
    return tl.reshape(tile, (B * FOLD, N * NARROW))


@triton.jit
def load_rule(
    pointer, first_j, first_g, P: tl.constexpr, G: tl.constexpr, STEP_G: tl.constexpr, STEP_R: tl.constexpr,
    BLOCK_G: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Return a factor of the rule as [(j f), (g f')].

    G: sides of the factor. STEP_G, STEP_R: strides of its sides and of its ranks.
    """
    jf = tl.arange(0, P.block_j * FOLD)[:, None]
    gf = tl.arange(0, BLOCK_G * FOLD)[None, :]
    j = first_j + jf // FOLD
    i, r = j // P.padded_rank, j % P.padded_rank
    g = first_g + gf // FOLD
    mask = (i < P.terms) & (r < P.rank) & (g < G) & (jf % FOLD == gf % FOLD)
    return tl.load(pointer + (i * (G * P.rank) + g * STEP_G + r * STEP_R), mask=mask, other=0.0)


@triton.jit
def load_rule_in(pointer, first_j, first_a, P: tl.constexpr, BLOCK_A: tl.constexpr, FOLD: tl.constexpr):
    """Return rule_in (terms, g_in, rank) as [(j f), (a f')]."""
    return load_rule(pointer, first_j, first_a, P, P.g_in, P.rank, 1, BLOCK_A, FOLD)


@triton.jit
def load_rule_out(pointer, first_j, first_c, P: tl.constexpr, BLOCK_C: tl.constexpr, FOLD: tl.constexpr):
    """Return rule_out (terms, rank, g_out) as [(j f), (c f')]."""
    return load_rule(pointer, first_j, first_c, P, P.g_out, 1, P.g_out, BLOCK_C, FOLD)


@triton.jit
def load_local(pointer, first_j, first_u, first_v, P: tl.constexpr):
    """Return local (terms, loc_in, loc_out) as [j, u, v]: the block of a term is repeated for each r."""
    i = (first_j + tl.arange(0, P.block_j))[:, None, None] // P.padded_rank
    u = (first_u + tl.arange(0, P.block_u))[None, :, None]
    v = (first_v + tl.arange(0, P.block_v))[None, None, :]
    mask = (i < P.terms) & (u < P.loc_in) & (v < P.loc_out)
    return tl.load(pointer + ((i * P.loc_in + u) * P.loc_out + v), mask=mask, other=0.0)


@triton.jit
def stage_1(
    x, rule_in, first_row, first_j, first_u, rows, P: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr
):
    """Return t[j, n, u] = sum_a rule_in[j, a] x[n, a, u], in the dtype of x."""
    FOLD: tl.constexpr = P.fold_a
    t = tl.zeros((P.block_j * FOLD, BLOCK_ROWS * P.block_u // FOLD), tl.float32)
    for a in range(0, P.g_in, P.block_a):
        n, column, mask = row_tile(
            first_row, a, first_u, rows, P.g_in, P.loc_in, BLOCK_ROWS, P.block_a, P.block_u, FOLD
        )
        rule = load_rule_in(rule_in, first_j, a, P, P.block_a, FOLD)
        t = tl.dot(rule, load_rows(x, n, column, mask, P.d_in), t, input_precision=PRECISION)
    return unfold(t, BLOCK_ROWS, FOLD).to(x.dtype.element_ty)


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent of x, without cancellation near zero."""
    e = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - e) / (1.0 + e)
    xx = x * x
    near_zero = x * (1.0 + xx * (-1.0 / 3 + xx * (2.0 / 15 - xx * (17.0 / 315))))  # here 1 - e would cancel
    return tl.where(tl.abs(x) < 0.125, near_zero, tl.where(x < 0, -magnitude, magnitude))


@triton.jit
def normal_cdf(x):
    """Return the cumulative distribution function of the standard normal distribution."""
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@triton.jit
def activate(x, NAME: tl.constexpr):
    """Return the activation NAME of x; identity for any other name."""
    if NAME == "relu":
        y = tl.where(x < 0, 0.0, x)  # keeps NaN, as torch does
    elif NAME == "gelu":
        y = x * normal_cdf(x)
    elif NAME == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "tanh":
        y = tanh(x)
    elif NAME == "silu":
        y = x * tl.sigmoid(x)
    else:
        y = x
    return y


@triton.jit
def derivative(x, NAME: tl.constexpr):
    """Return d activate(x) / dx."""
    if NAME == "relu":
        d = tl.where(x > 0, 1.0, 0.0)
    elif NAME == "gelu":
        d = normal_cdf(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif NAME == "gelu_tanh":
        y = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        inner = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        # at |x| > 1e13 the slope of the cubic overflows, and 1 - y^2 is 0
        d = 0.5 * (1.0 + y) + tl.where(tl.abs(x) > 100.0, 0.0, 0.5 * x * (1.0 - y * y) * inner)
    elif NAME == "tanh":
        y = tanh(x)
        d = 1.0 - y * y
    elif NAME == "silu":
        y = tl.sigmoid(x)
        d = y * (1.0 + x * (1.0 - y))
    else:
        d = tl.zeros_like(x) + 1.0
    return d
