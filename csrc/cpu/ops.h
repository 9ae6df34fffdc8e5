// The ops of the CPU backend; schemas and meaning in mop_kernels/ops.py.
#pragma once

#include <string>

#include "common.h"

namespace mop {

Tensor phm_weight(Tensor rule, Tensor local);
std::vector<Tensor> phm_weight_backward(Tensor grad, Tensor rule, Tensor local, i64 mask);

PhmDims weight_dims(const Tensor& rule, const Tensor& local);

// The ways of phm_linear and their costs, in multiply-adds at the rate of a dense product; the cheapest is taken.
struct ForwardPlan {
  i64 weight_once, local_first, rule_first;
};
struct BackwardPlan {
  i64 weight_once, rule_first;
};
ForwardPlan plan_phm_linear(i64 rows, const PhmDims& dims);
BackwardPlan plan_phm_linear_backward(i64 rows, const PhmDims& dims);

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

std::vector<Tensor> attempt_mix(Tensor x, std::optional<Tensor> keep, Tensor source, Tensor target, Tensor task_ids,
                                Tensor w_down, Tensor w_up, Tensor ln_weight, Tensor ln_bias, double temperature);
std::vector<Tensor> attempt_mix_backward(Tensor grad_prefixed, Tensor grad_attention, Tensor peak, Tensor position,
                                         Tensor source, Tensor target, Tensor task_ids, Tensor w_down, Tensor w_up,
                                         Tensor ln_weight, Tensor ln_bias, double temperature, i64 mask);

}  // namespace mop
