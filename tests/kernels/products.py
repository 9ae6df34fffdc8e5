"""The tests that phm_weight and both linear operations share: values and all gradients within the error budget."""

import pytest
import torch
from judging import check_product
from layouts import LAYOUTS

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.testing import SHAPES
from mop_kernels.truth import PRODUCTS


class ProductTests:
    op: str

    def inputs(self, *args, **options):
        return PRODUCTS[self.op][2](*args, **options)

    def check(self, backend, tensors, layout="contiguous"):
        check_product(self.op, backend, tensors, layout)

    @pytest.mark.parametrize("name", SHAPES)
    def test_named_shapes(self, name, dtype, backend):
        self.check(backend, self.inputs(SHAPES[name], dtype))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", ["odd", "paper_up"])
    def test_layouts_of_inputs(self, name, layout, backend):
        self.check(backend, [LAYOUTS[layout](t) for t in self.inputs(SHAPES[name], torch.float32)])

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", ["odd", "paper_up", "one_row", "many_rows"])
    def test_layouts_of_output_gradients(self, name, layout, backend):
        self.check(backend, self.inputs(SHAPES[name], torch.float32), layout)

    def test_layouts_together(self, dtype, backend):
        tensors = self.inputs(SHAPES["prime"], dtype)
        layouts = ("sliced", "transposed", "expanded", "contiguous", "sliced")
        self.check(backend, [LAYOUTS[layout](t) for layout, t in zip(layouts, tensors)], "transposed")


class LinearTests(ProductTests):
    @pytest.mark.parametrize("name", ["odd", "one_row", "no_row"])
    def test_without_bias(self, name, backend):
        self.check(backend, self.inputs(SHAPES[name], torch.float32, bias=False))

    @pytest.mark.parametrize("groups", [(), (2, 3), (0,), (2, 0)])
    def test_leading_dims_of_x(self, groups, dtype, backend):
        x, *factors = self.inputs(SHAPES["odd"], dtype)
        count = torch.Size(groups).numel()
        x = x[:count].reshape(*groups, x.shape[-1])
        function = getattr(mk, self.op)
        y = function(x, *factors, backend=backend)
        flat = function(x.reshape(-1, x.shape[-1]), *factors, backend=backend)
        assert y.shape == (*groups, flat.shape[-1])
        assert torch.equal(y.reshape(flat.shape), flat)

    @pytest.mark.parametrize("layout", ["contiguous", "scalar"])
    def test_bias_gradient_of_very_many_rows(self, layout, backend):
        """One running sum over the rows drifts: equal gradients, as sum() gives, round the same way every time."""
        tensors = self.inputs(SHAPES["many_rows"]._replace(rows=50_000), torch.float32)
        grad = testing.normal(torch.Generator().manual_seed(9), torch.float32, 50_000, tensors[-1].numel())
        grad = LAYOUTS[layout](grad)
        needs = [k == len(tensors) - 1 for k in range(len(tensors))]
        function = getattr(mk, self.op)
        _, gradients = testing.value_and_gradients(lambda *t: function(*t, backend=backend), tensors, [grad], needs)
        assert testing.relative_error(gradients[-1], grad.double().sum(0)) < 2e-6
