// phm_weight: W[(a u), (c v)] = sum_i rule[i, a, c] local[i, u, v], with equal leading dims.
#include "cpu_ops.h"

namespace mop {

Tensor phm_weight(Tensor rule, Tensor local) {
  const PhmDims d = weight_dims(rule, local);
  const i64 groups = rule.numel() / d.rule_size();
  Tensor weight = empty_weight(rule, d);
  by_dtype(rule, [&](auto zero) {
    using T = decltype(zero);
    const T *rules = in<T>(rule), *locals = in<T>(local);
    T* to = out<T>(weight);
    for_each_task(groups * d.g_in, [&](i64 task) {
      const i64 group = task / d.g_in;
      kernels<T>().weight_rows(d, task % d.g_in, rules + group * d.rule_size(), locals + group * d.local_size(),
                               to + group * d.in() * d.out());
    });
  });
  return weight;
}

std::vector<Tensor> phm_weight_backward(Tensor grad, Tensor rule, Tensor local, i64 mask) {
  const PhmDims d = weight_dims(rule, local);
  const i64 groups = rule.numel() / d.rule_size();
  MOP_GUARD(groups * d.in() * d.out() == grad.numel());
  grad = as_contiguous(grad);
  std::vector<Tensor> asked;
  by_dtype(rule, [&](auto zero) {
    using T = decltype(zero);
    const T *from = in<T>(grad), *rules = in<T>(rule), *locals = in<T>(local);
    if (mask & 1) {
      asked.push_back(empty_as(rule));
      T* to = out<T>(asked.back());
      for_each_task(groups * d.g_in, [&](i64 task) {
        const i64 group = task / d.g_in;
        kernels<T>().weight_grad_rule(d, task % d.g_in, from + group * d.in() * d.out(),
                                      locals + group * d.local_size(), to + group * d.rule_size());
      });
    }
    if (mask & 2) {
      asked.push_back(empty_as(local));
      T* to = out<T>(asked.back());
      for_each_task(groups * d.loc_in, [&](i64 task) {
        const i64 group = task / d.loc_in;
        kernels<T>().weight_grad_local(d, task % d.loc_in, from + group * d.in() * d.out(),
                                       rules + group * d.rule_size(), to + group * d.local_size());
      });
    }
  });
  return asked;
}

}  // namespace mop
