// phm_weight: W[(a u), (c v)] = sum_i rule[i, a, c] local[i, u, v], with equal leading dims. Each result is one
// product. W viewed as [(a c), (u v)] is rule^T local, whose contracted axis is the terms; the gradients are the other
// two products of the three tensors. Bytes decide the time: the factors are read once and W is written once, at `terms`
// multiply-adds per element.
#include "../ops.h"
#include "products.h"

namespace mop {

Tensor phm_weight(Tensor rule, Tensor local) {
  const PhmDims d = weight_dims(rule, local);
  const i64 groups = rule.numel() / d.rule_size();
  const Tensor weight = empty_weight(rule, d);
  const Launch launch(rule);
  by_dtype(rule, [&](auto zero) {
    using T = decltype(zero);
    Matmul<T> p{};
    p.a = in<T>(rule), p.b = in<T>(local), p.c = out<T>(weight);
    p.batch = axis(groups, d.rule_size(), d.local_size(), d.in() * d.out());
    p.m = axis(d.g_in, d.g_out, {d.g_out, 1}, {d.loc_in * d.out(), d.loc_out});
    p.n = axis(d.loc_in, d.loc_out, {d.loc_out, 1}, {d.out(), 1});
    p.k = axis(d.terms, d.g_in * d.g_out, d.loc_in * d.loc_out);
    matmul(launch, rule, "phm_weight", p, weight.numel());
  });
  return weight;
}

std::vector<Tensor> phm_weight_backward(Tensor grad, Tensor rule, Tensor local, i64 mask) {
  const PhmDims d = weight_dims(rule, local);
  const i64 groups = rule.numel() / d.rule_size();
  MOP_GUARD(groups * d.in() * d.out() == grad.numel());
  grad = as_contiguous(grad);
  const i64 rule_term = d.g_in * d.g_out, local_term = d.loc_in * d.loc_out;
  const Strides of_rule{d.g_out, 1}, of_local{d.loc_out, 1};                       // (a, c), (u, v) in a term of each
  const Strides rule_in_w{d.loc_in * d.out(), d.loc_out}, local_in_w{d.out(), 1};  // and in W
  const Launch launch(rule);
  std::vector<Tensor> asked;
  by_dtype(rule, [&](auto zero) {
    using T = decltype(zero);
    if (mask & 1) {
      asked.push_back(empty_as(rule));
      Matmul<T> p{};
      p.a = in<T>(local), p.b = in<T>(grad), p.c = out<T>(asked.back());
      p.batch = axis(groups, d.local_size(), d.in() * d.out(), d.rule_size());
      p.m = axis(d.terms, local_term, rule_term);
      p.n = axis(d.g_in, d.g_out, rule_in_w, of_rule);
      p.k = axis(d.loc_in, d.loc_out, of_local, local_in_w);
      matmul(launch, rule, "phm_weight_backward, rule", p, rule.numel());
    }
    if (mask & 2) {
      asked.push_back(empty_as(local));
      Matmul<T> p{};
      p.a = in<T>(rule), p.b = in<T>(grad), p.c = out<T>(asked.back());
      p.batch = axis(groups, d.rule_size(), d.in() * d.out(), d.local_size());
      p.m = axis(d.terms, rule_term, local_term);
      p.n = axis(d.loc_in, d.loc_out, local_in_w, of_local);
      p.k = axis(d.g_in, d.g_out, of_rule, rule_in_w);
      matmul(launch, rule, "phm_weight_backward, local", p, local.numel());
    }
  });
  return asked;
}

}  // namespace mop
