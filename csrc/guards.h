// One-line guards against memory errors; errors of users are found, and explained, in functional.py.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define MOP_GUARD(condition) STD_TORCH_CHECK(condition, "mop_kernels internal guard failed: " #condition)
