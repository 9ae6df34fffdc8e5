// lowrank_phm_linear: three stages on blocks of rows. Backward sums each factor's gradient over a fixed number of
// chunks of rows, so the result does not depend on the threads.
#include "cpu_ops.h"

namespace mop {
namespace {

constexpr i64 kMaxChunks = 8, kRowsAChunk = 64;
constexpr i64 kLeastForward = 96, kLeastBackward = 192;  // backward moves the gradient of the locals once per block

}  // namespace

Tensor lowrank_phm_linear(Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, std::optional<Tensor> bias) {
  const PhmDims d = linear_dims(x, rule_in, rule_out, local);
  MOP_GUARD(fits(bias, d.out()));
  Tensor y = empty_rows(x, d.out());
  const i64 rows = x.numel() / d.in();
  const Tensor packed = packed_rule_in(rule_in);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Factors<T> factors{in<T>(packed), in<T>(rule_out), in<T>(local), in<T>(bias)};
    const T* from = in<T>(x);
    T* to = out<T>(y);
    const i64 block = block_rows(rows, map_forward_scratch(d, 1) * sizeof(T), kLeastForward);
    const bool stream = streams(to, d.loc_out, rows * d.out());
    for_each_task((rows + block - 1) / block, [&](i64 task) {
      const i64 n = task * block, height = std::min(block, rows - n);
      const MapForward<T> unit{d, factors, height, from + n * d.in(), to + n * d.out(), stream};
      kernels<T>().map_forward(unit, thread_scratch<T>(map_forward_scratch(d, height)));
    });
  });
  return y;
}

std::vector<Tensor> lowrank_phm_linear_backward(Tensor grad, Tensor x, Tensor rule_in, Tensor rule_out, Tensor local,
                                                i64 mask) {
  const PhmDims d = linear_dims(x, rule_in, rule_out, local);
  MOP_GUARD(grad.size(grad.dim() - 1) == d.out());
  const i64 rows = x.numel() / d.in();
  const i64 chunks = std::max<i64>(1, std::min(kMaxChunks, rows / kRowsAChunk));
  const Tensor grad_y = as_rows(grad, rows, d.out());
  const Tensor packed = packed_rule_in(rule_in);
  const SumOfParts sums[4] = {{bool(mask & 2), x, chunks, {d.terms, d.rank, d.g_in}},
                              {bool(mask & 4), x, chunks, rule_out.sizes()},
                              {bool(mask & 8), x, chunks, local.sizes()},
                              {bool(mask & 16), x, chunks, {d.out()}}};
  std::vector<Tensor> asked;
  if (mask & 1) asked.push_back(empty_as(x));

  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Factors<T> factors{in<T>(packed), in<T>(rule_out), in<T>(local), nullptr};
    const T* from = in<T>(x);
    const T* from_grad = static_cast<const T*>(grad_y.const_data_ptr());
    T* const to_x = mask & 1 ? out<T>(asked[0]) : nullptr;
    const i64 block = block_rows(rows, map_backward_scratch(d, 1) * sizeof(T), kLeastBackward);
    for_each_task(chunks, [&](i64 chunk) {
      const i64 begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
      const Gradients<T> grads{sums[0].at<T>(chunk), sums[1].at<T>(chunk), sums[2].at<T>(chunk), sums[3].at<T>(chunk)};
      T* scratch = thread_scratch<T>(map_backward_scratch(d, block));
      for (i64 n = begin; n < end || n == begin; n += block) {  // without rows: once, to write the zeros
        const MapBackward<T> unit{d,
                                  factors,
                                  std::min(block, end - n),
                                  from + n * d.in(),
                                  {from_grad + n * grad_y.stride(0), grad_y.stride(0), grad_y.stride(1)},
                                  grads,
                                  to_x ? to_x + n * d.in() : nullptr,
                                  n > begin};
        kernels<T>().map_backward(unit, scratch);
      }
    });
  });
  for (int k = 0; k < 4; ++k) {
    sums[k].finish(asked);
    if (k == 0 && mask & 2) asked.back() = swapped_sides(asked.back());
  }
  return asked;
}

}  // namespace mop
