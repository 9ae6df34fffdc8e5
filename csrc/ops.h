// The ops of the CPU and of the CUDA backend. mop_kernels/ops.py has their schemas and their meaning. Each backend is a
// module of its own and implements the ops under these names. Factors come contiguous, gradients of outputs with any
// strides.
#pragma once

#include <torch/csrc/stable/library.h>

#include <utility>

#include "tensors.h"

namespace mop {

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

// An op that first makes its tensors contiguous: exported and traced programs call ops directly, with any strides.
inline Tensor as_contiguous(Tensor t) {
  if (t.is_contiguous()) return t;
  return torch::stable::contiguous(t);
}
inline std::optional<Tensor> as_contiguous(std::optional<Tensor> t) {
  if (t && !t->is_contiguous()) t = torch::stable::contiguous(*t);
  return t;
}
inline std::vector<Tensor> as_contiguous(std::vector<Tensor> tensors) {
  for (Tensor& t : tensors)
    if (!t.is_contiguous()) t = torch::stable::contiguous(t);
  return tensors;
}
// A tensor as a matrix. A contiguous tensor needs no copy.
inline Tensor as_rows(const Tensor& t, i64 rows, i64 width) {
  return t.is_contiguous() ? viewed(t, {rows, width}) : torch::stable::reshape(t, {rows, width});
}
inline i64 as_contiguous(i64 number) { return number; }
inline double as_contiguous(double number) { return number; }
inline bool as_contiguous(bool flag) { return flag; }
inline std::string as_contiguous(std::string text) { return text; }

// The first `any` arguments, gradients of outputs, stay unchanged: kernels read them with any strides.
template <auto op, std::size_t any = 0>
struct Contiguous;
template <class Result, class... Arguments, Result (*op)(Arguments...), std::size_t any>
struct Contiguous<op, any> {
  template <std::size_t k, class Argument>
  static Argument at(Argument argument) {
    if constexpr (k < any)
      return argument;
    else
      return as_contiguous(std::move(argument));
  }
  template <std::size_t... k>
  static Result apply(std::index_sequence<k...>, Arguments... arguments) {
    return op(at<k>(std::move(arguments))...);
  }
  static Result call(Arguments... arguments) {
    return apply(std::index_sequence_for<Arguments...>{}, std::move(arguments)...);
  }
};

template <auto op>
using AfterGradient = Contiguous<op, 1>;
template <auto op>
using AfterTwoGradients = Contiguous<op, 2>;

// Registers the ops that both backends implement, as NAME_BACKEND.
inline void register_ops(torch::stable::detail::StableLibrary& library, const std::string& backend) {
  const auto add = [&](const char* name, auto* boxed) { library.impl((name + ("_" + backend)).c_str(), boxed); };
  add("phm_weight", TORCH_BOX(&Contiguous<&phm_weight>::call));
  add("phm_weight_backward", TORCH_BOX(&AfterGradient<&phm_weight_backward>::call));
  add("phm_linear", TORCH_BOX(&Contiguous<&phm_linear>::call));
  add("phm_linear_backward", TORCH_BOX(&AfterGradient<&phm_linear_backward>::call));
  add("lowrank_phm_linear", TORCH_BOX(&Contiguous<&lowrank_phm_linear>::call));
  add("lowrank_phm_linear_backward", TORCH_BOX(&AfterGradient<&lowrank_phm_linear_backward>::call));
  add("mop_ffn", TORCH_BOX(&Contiguous<&mop_ffn>::call));
  add("mop_ffn_backward", TORCH_BOX(&AfterGradient<&mop_ffn_backward>::call));
}

// The guards of the sizes are as strict as validation.py: a repeated call relies on them (operation.py).

// Sizes of a full rule (..., terms, g_in, g_out) with local (..., terms, loc_in, loc_out), of equal leading dims.
inline PhmDims weight_dims(const Tensor& rule, const Tensor& local) {
  const i64 r = rule.dim(), l = local.dim();
  MOP_GUARD(r >= 3 && l == r && rule.numel() > 0 && local.numel() > 0);
  for (i64 k = 0; k <= r - 3; ++k) MOP_GUARD(rule.size(k) == local.size(k));
  const PhmDims d{rule.size(r - 3), 1, rule.size(r - 2), rule.size(r - 1), local.size(l - 2), local.size(l - 1)};
  return d;
}

// Sizes of the map of lowrank_phm_linear.
inline PhmDims linear_dims(const Tensor& x, const Tensor& rule_in, const Tensor& rule_out, const Tensor& local) {
  MOP_GUARD(rule_in.dim() == 3 && rule_out.dim() == 3 && local.dim() == 3);
  const PhmDims d{local.size(0), rule_in.size(2), rule_in.size(1), rule_out.size(2), local.size(1), local.size(2)};
  MOP_GUARD(rule_in.size(0) == d.terms && rule_out.size(0) == d.terms && rule_out.size(1) == d.rank);
  MOP_GUARD(rule_in.numel() > 0 && rule_out.numel() > 0 && local.numel() > 0);
  MOP_GUARD(x.dim() > 0 && x.size(x.dim() - 1) == d.in());
  return d;
}

inline bool fits(const std::optional<Tensor>& bias, i64 width) {
  return !bias || (bias->dim() == 1 && bias->numel() == width);
}

// An uninitialised W (..., g_in*loc_in, g_out*loc_out) of a full rule.
inline Tensor empty_weight(const Tensor& rule, const PhmDims& d) {
  std::vector<i64> sizes(rule.sizes().begin(), rule.sizes().end() - 3);
  sizes.insert(sizes.end(), {d.in(), d.out()});
  return empty(rule, sizes);
}

}  // namespace mop
