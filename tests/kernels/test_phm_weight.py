"""phm_weight: values and all gradients, on every backend, within the error budget."""

import pytest
import torch
from judging import check_product
from products import ProductTests

from mop_kernels import testing


class TestPhmWeight(ProductTests):
    op = "phm_weight"


@pytest.mark.parametrize(
    ("rule_groups", "local_groups"), [((2, 3), (2, 3)), ((), (4,)), ((3, 1), (1, 2)), ((2,), (3, 1)), ((1,), ())]
)
def test_leading_dims_broadcast(rule_groups, local_groups, dtype, backend):
    g = torch.Generator().manual_seed(3)
    rule = testing.normal(g, dtype, *rule_groups, 3, 4, 2)
    local = testing.normal(g, dtype, *local_groups, 3, 5, 7)
    check_product("phm_weight", backend, [rule, local])
