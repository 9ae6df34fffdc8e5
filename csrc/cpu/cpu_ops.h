// The ops that only the CPU backend has, and the plans of phm_linear.
#pragma once

#include "../ops.h"
#include "tasks.h"

namespace mop {

// The costs of the ways of phm_linear, in multiply-adds at the rate of a dense product. The cheapest way is taken.
struct ForwardPlan {
  i64 weight_once, local_first, rule_first;
};
struct BackwardPlan {
  i64 weight_once, rule_first;
};
ForwardPlan plan_phm_linear(i64 rows, const PhmDims& dims);
BackwardPlan plan_phm_linear_backward(i64 rows, const PhmDims& dims);

// y = x (I (x) local) + bias, with a narrow local (width_in, width_out).
Tensor local_linear(Tensor x, Tensor local, std::optional<Tensor> bias);
std::vector<Tensor> local_linear_backward(Tensor grad, Tensor x, Tensor local, i64 mask);

std::vector<Tensor> attempt_mix(Tensor x, std::optional<Tensor> keep, Tensor source, Tensor target, Tensor task_ids,
                                Tensor w_down, Tensor w_up, Tensor ln_weight, Tensor ln_bias, double temperature);
std::vector<Tensor> attempt_mix_backward(Tensor grad_prefixed, Tensor grad_attention, Tensor peak, Tensor position,
                                         Tensor source, Tensor target, Tensor task_ids, Tensor w_down, Tensor w_up,
                                         Tensor ln_weight, Tensor ln_bias, double temperature, i64 mask);

std::vector<Tensor> prefix_attention(Tensor query, Tensor key, Tensor value, std::optional<Tensor> prefix_key,
                                     std::optional<Tensor> prefix_value, std::optional<Tensor> rows,
                                     std::optional<Tensor> bias, std::optional<Tensor> key_mask,
                                     std::optional<Tensor> seed, bool causal, double scale, double dropout);
std::vector<Tensor> prefix_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                              std::optional<Tensor> prefix_key, std::optional<Tensor> prefix_value,
                                              std::optional<Tensor> rows, std::optional<Tensor> bias,
                                              std::optional<Tensor> key_mask, std::optional<Tensor> seed, Tensor lse,
                                              bool causal, double scale, double dropout, i64 needs);
Tensor rms_norm(Tensor x, Tensor weight, double eps);
std::vector<Tensor> rms_norm_backward(Tensor grad, Tensor x, Tensor weight, double eps, i64 mask);

Tensor dropout_add(Tensor x, std::optional<Tensor> residual, Tensor seed, double p);
std::vector<Tensor> dropout_add_backward(Tensor grad, Tensor seed, double p, i64 mask);

std::vector<Tensor> relu_dropout(Tensor x, std::optional<Tensor> seed, double p);
std::vector<Tensor> relu_dropout_backward(Tensor grad, Tensor bits, double p, i64 mask);

Tensor gated_gelu_dropout(Tensor gate, Tensor x, std::optional<Tensor> seed, double p);
std::vector<Tensor> gated_gelu_dropout_backward(Tensor grad, Tensor gate, Tensor x, std::optional<Tensor> seed,
                                                double p, i64 mask);

// A step of the online softmax over a piece of the classes, in place; see kernels.h. Used by linear_cross_entropy.
Tensor softmax_piece(Tensor logits, Tensor peak, Tensor total);

}  // namespace mop
