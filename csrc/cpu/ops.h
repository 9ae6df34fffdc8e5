// The ops of the CPU backend; schemas and meaning in mop_kernels/ops.py.
#pragma once

#include <string>

#include "common.h"

namespace mop {

Tensor phm_weight(Tensor rule, Tensor local);
std::vector<Tensor> phm_weight_backward(Tensor grad, Tensor rule, Tensor local, i64 mask);

PhmDims weight_dims(const Tensor& rule, const Tensor& local);

struct Plan {  // multiply-adds of phm_linear's two ways, and whether the second is taken
  i64 weight_once, local_first;
  bool takes_local_first;
};
Plan plan_phm_linear(i64 rows, const PhmDims& dims);

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
