// phm_linear: W built once, then dense products of torch. A full rule saves no multiply-adds over dense.
#include "ops.h"

namespace mop {
namespace {

Tensor as_rows(const Tensor& t, i64 width) { return torch::stable::reshape(t, {t.numel() / width, width}); }

}  // namespace

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

Tensor phm_linear(Tensor x, Tensor rule, Tensor local, std::optional<Tensor> bias) {
  const Tensor weight = phm_weight(rule, local);
  const i64 width = weight.size(0), out_width = weight.size(1);
  MOP_GUARD(x.size(x.dim() - 1) == width && (!bias || bias->numel() == out_width));
  Tensor y = torch::stable::matmul(as_rows(x, width), weight);
  MOP_GUARD(y.scalar_type() == x.scalar_type());  // autocast would have cast it
  if (bias)
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const T* b = in<T>(*bias);
      T* to = out<T>(y);
      for_each_task(y.size(0), [&](i64 n) {
        for (i64 k = 0; k < out_width; ++k) to[n * out_width + k] += b[k];
      });
    });
  std::vector<i64> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = out_width;
  return torch::stable::view(y, sizes);
}

std::vector<Tensor> phm_linear_backward(Tensor grad, Tensor x, Tensor rule, Tensor local, i64 mask) {
  const i64 width = rule.size(1) * local.size(1), out_width = rule.size(2) * local.size(2);
  MOP_GUARD(x.size(x.dim() - 1) == width && grad.size(grad.dim() - 1) == out_width);
  const Tensor rows = as_rows(x, width);
  const Tensor grad_rows = torch::stable::contiguous(as_rows(grad, out_width));
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
