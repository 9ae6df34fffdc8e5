// phm_linear: W built once, then dense products of torch; on few rows the factors are applied without it. A full rule
// saves no multiply-adds over dense, only the building of W.
#include "ops.h"

namespace mop {
namespace {

// The cost model counts multiply-adds, with what they do not show: local first makes short products of odd shapes, a
// dense product runs near the machine's rate; an element of W that is written and read again costs as much as kMemory.
constexpr i64 kLocalFirstPenalty = 2, kMemory = 64;
// Rows of a task of local first: few, so that few rows make several tasks; more share what is read of the locals.
constexpr i64 kLocalFirstRows = 4;

Tensor as_rows(const Tensor& t, i64 width) { return torch::stable::reshape(t, {t.numel() / width, width}); }

Tensor column_sums(const Tensor& rows) {
  const i64 height = rows.size(0), width = rows.size(1);
  Tensor sums = empty(rows, {width});
  by_dtype(rows, [&](auto zero) {
    using T = decltype(zero);
    constexpr i64 kChunk = 512;
    for_each_task((width + kChunk - 1) / kChunk, [&](i64 task) {
      const i64 at = task * kChunk;
      kernels<T>().sum_rows(height, std::min(kChunk, width - at), in<T>(rows) + at, width, out<T>(sums) + at);
    });
  });
  return sums;
}

}  // namespace

Plan plan_phm_linear(i64 rows, const PhmDims& d) {
  const i64 weight_once = (d.terms + rows + kMemory) * d.in() * d.out();
  const i64 local_first = rows * d.terms * (d.in() * d.loc_out + d.g_in * d.out());
  return {weight_once, local_first, local_first * kLocalFirstPenalty < weight_once};
}

Tensor phm_linear(Tensor x, Tensor rule, Tensor local, std::optional<Tensor> bias) {
  const PhmDims d = weight_dims(rule, local);
  MOP_GUARD(rule.dim() == 3 && x.size(x.dim() - 1) == d.in() && (!bias || bias->numel() == d.out()));
  const i64 rows = x.numel() / d.in();
  std::vector<i64> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = d.out();
  if (plan_phm_linear(rows, d).takes_local_first) {
    Tensor y = torch::stable::new_empty(x, sizes);
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const Factors<T> factors{in<T>(rule), nullptr, in<T>(local), in<T>(bias)};
      const T* from = in<T>(x);
      T* to = out<T>(y);
      for_each_task((rows + kLocalFirstRows - 1) / kLocalFirstRows, [&](i64 task) {
        const i64 n = task * kLocalFirstRows, height = std::min(kLocalFirstRows, rows - n);
        const MapForward<T> unit{d, factors, height, from + n * d.in(), to + n * d.out(), false};
        kernels<T>().local_first(unit, thread_scratch<T>(local_first_scratch(d, height)));
      });
    });
    return y;
  }
  Tensor y = torch::stable::matmul(x.dim() == 2 ? x : as_rows(x, d.in()), phm_weight(rule, local));
  MOP_GUARD(y.scalar_type() == x.scalar_type());  // autocast would have cast it
  if (bias)
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const T* b = in<T>(*bias);
      T* to = out<T>(y);
      for_each_task(rows, [&](i64 n) {
        for (i64 k = 0; k < d.out(); ++k) to[n * d.out() + k] += b[k];
      });
    });
  return x.dim() == 2 ? y : torch::stable::view(y, sizes);
}

std::vector<Tensor> phm_linear_backward(Tensor grad, Tensor x, Tensor rule, Tensor local, i64 mask) {
  const PhmDims d = weight_dims(rule, local);
  MOP_GUARD(rule.dim() == 3 && x.size(x.dim() - 1) == d.in() && grad.size(grad.dim() - 1) == d.out());
  const Tensor rows = as_rows(x, d.in());
  const Tensor grad_rows = torch::stable::contiguous(as_rows(grad, d.out()));
  std::vector<Tensor> asked;
  if (mask & 1) {
    const Tensor weight = phm_weight(rule, local);
    const Tensor grad_x = torch::stable::matmul(grad_rows, torch::stable::transpose(weight, 0, 1));
    asked.push_back(torch::stable::view(grad_x, x.sizes()));
  }
  if (mask & 6) {
    const Tensor grad_weight = torch::stable::matmul(torch::stable::transpose(rows, 0, 1), grad_rows);
    for (Tensor& factor : phm_weight_backward(grad_weight, rule, local, mask >> 1 & 3)) asked.push_back(factor);
  }
  if (mask & 8) asked.push_back(column_sums(grad_rows));
  return asked;
}

}  // namespace mop
