// The ops of the CUDA backend; schemas and meaning in mop_kernels/ops.py. Factors come contiguous, gradients of outputs
// with any strides.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../dims.h"

namespace mop {

using torch::stable::Tensor;

PhmDims weight_dims(const Tensor& rule, const Tensor& local);

Tensor phm_weight(Tensor rule, Tensor local);
std::vector<Tensor> phm_weight_backward(Tensor grad, Tensor rule, Tensor local, i64 mask);

Tensor phm_linear(Tensor x, Tensor rule, Tensor local, std::optional<Tensor> bias);
std::vector<Tensor> phm_linear_backward(Tensor grad, Tensor x, Tensor rule, Tensor local, i64 mask);

Tensor lowrank_phm_linear(Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, std::optional<Tensor> bias);
std::vector<Tensor> lowrank_phm_linear_backward(Tensor grad, Tensor x, Tensor rule_in, Tensor rule_out, Tensor local,
                                                i64 mask);

std::vector<Tensor> mop_ffn(Tensor x, std::vector<Tensor> down, std::vector<Tensor> ups, i64 num_maps,
                            std::string activation, std::optional<Tensor> experts);
std::vector<Tensor> mop_ffn_backward(std::vector<Tensor> grads, Tensor x, std::vector<Tensor> down,
                                     std::vector<Tensor> ups, i64 num_maps, std::string activation,
                                     std::optional<Tensor> experts, i64 mask);

}  // namespace mop
