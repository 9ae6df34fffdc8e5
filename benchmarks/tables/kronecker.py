"""Measure what the Kronecker layer of each installed library computes, on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from benchmarks.tables.kronecker_libraries import LIBRARIES, Library, Made, Sizes
from benchmarks.tables.record import Cell, difference, measured, write

SMALL = Sizes(4, 8, 12)
LARGE = Sizes(16, 16, 24)
ONES = Sizes(32, 32, 32, torch.bfloat16, whole=True)

# name -> weight (in, out) that two factors stand for, so that y = x W
ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kron({0}, {1})": torch.kron,
    "kron({1}, {0})": lambda a, b: torch.kron(b, a),
    "kron({0}, {1})^T": lambda a, b: torch.kron(a, b).T,
    "kron({1}, {0})^T": lambda a, b: torch.kron(b, a).T,
}

Make = Callable[[Sizes], Made]


def randomised(make: Make, sizes: Sizes, size: float = 0.5) -> Made:
    """Return a layer with normal factors."""
    made = make(sizes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters:
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * size
            parameter.copy_(values.to(parameter.dtype))
    return made


@torch.no_grad()
def order_and_scale(make: Make) -> tuple[str, float]:
    """Return the order of the factors that gives the layer's weight up to a number, and the number."""
    made = randomised(make, SMALL)
    width = SMALL.width
    weight = made.call(torch.eye(width)).double()
    for name, order in ORDERS.items():
        product = sum(order(a.double(), b.double()) for a, b in made.terms())
        if isinstance(product, Tensor) and product.shape == weight.shape:
            scale = ((weight * product).sum() / (product * product).sum()).item()
            if (weight - scale * product).abs().max() < 1e-4 * weight.abs().max():
                return name, round(scale, 4)
    raise ValueError("the weight is none of the orders")


def formula(library: Library) -> Cell:
    """Return the weight W (in, out) of y = x W, with the names of the factors and the measured order."""
    order, _ = order_and_scale(library.make)
    product = order.format(*library.factors)
    return f"sum_i {product}" if library.factors[0].endswith("_i") else product


def scale(make: Make) -> Cell:
    """Return the number before the Kronecker product."""
    return order_and_scale(make)[1]


def new_layer(library: Library) -> Cell:
    """Say whether a new layer computes zero, by which factor, and which part of it the first step trains.

    Returns None if the library initialises nothing.
    """
    torch.manual_seed(2)
    made = library.make(LARGE)
    if not made.parameters[0].requires_grad:
        return None
    weight = made.call(torch.eye(LARGE.width))
    if weight.any():
        size = weight.std().item() / (3 * LARGE.width) ** -0.5  # nn.Linear draws with this standard deviation
        return f"{size:.2g} times the standard deviation of nn.Linear"
    zero = [name for k, name in enumerate(library.factors) if not any(pair[k].any() for pair in made.terms())]
    weight.sin().sum().backward()
    gradients = [p.grad for p in made.parameters if p.grad is not None]
    trained = sum(int(g.count_nonzero()) for g in gradients)
    return f"zero, as {' and '.join(zero)} is; step 1 trains {trained} of {sum(p.numel() for p in made.parameters)}"


@torch.no_grad()
def sum_of_ones(make: Make) -> Cell:
    """Return what bfloat16 ones sum to, as a share of the exact number."""
    made = make(ONES)
    for parameter in made.parameters:
        parameter.fill_(1.0)
    width = ONES.width
    out = made.call(torch.ones(2, width, dtype=torch.bfloat16))
    return round(out.max().item() / (width * len(made.terms())), 4)


@torch.no_grad()
def rounding(make: Make) -> Cell:
    """Return the RMS error of bfloat16 outputs, divided by that of the exact outputs rounded to bfloat16."""
    made = randomised(make, replace(LARGE, dtype=torch.bfloat16, whole=True), size=0.25)
    width = LARGE.width
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(3)).bfloat16()
    order = ORDERS[order_and_scale(make)[0]]
    weight = sum(order(a.double(), b.double()) for a, b in made.terms())
    exact = x.double() @ weight
    out = made.call(x)
    if out.dtype != torch.bfloat16:
        return f"{out.dtype} out"
    errors = [(values.double() - exact).square().mean().sqrt() for values in (out, exact.bfloat16())]
    return round((errors[0] / errors[1]).item(), 2)


@torch.no_grad()
def merged(make: Make, dtype: torch.dtype) -> Cell:
    """Return the largest difference of the outputs after merging, divided by the largest output."""
    made = randomised(make, replace(LARGE, dtype=dtype, random_base=True), size=0.25)
    if made.merge is None:
        return None
    x = torch.randn(64, LARGE.width, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = made.call(x).clone()
    after = made.merge()(x)
    return float(f"{difference(after, before) / before.abs().max().item():.1e}")


def main() -> None:
    """Run the command."""
    columns: dict[str, dict[str, Cell]] = {}
    packages = ["torch"]
    for name, library in LIBRARIES.items():
        make = library.make
        try:
            version(library.package)
        except PackageNotFoundError:
            continue
        packages.append(library.package)
        columns[name] = {
            "formula": measured(formula, library),
            "scale": measured(scale, make),
            "new layer": measured(new_layer, library),
            "bfloat16 ones": measured(sum_of_ones, make),
            "bfloat16 error": measured(rounding, make),
            "merged, float32": measured(merged, make, torch.float32),
            "merged, bfloat16": measured(merged, make, torch.bfloat16),
        }
    name = "adapters PHMLayer"
    if name in columns:  # that folder holds the releases that adapters needs
        write("kronecker.adapters", ["adapters", "torch", "transformers"], {name: columns[name]})
    else:
        write("kronecker", sorted(set(packages)), columns)


if __name__ == "__main__":
    main()
