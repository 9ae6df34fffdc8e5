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
  MOP_GUARD(!bias || bias->numel() == d.out());
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
  const Tensor grad_y = torch::stable::reshape(grad, {rows, d.out()});
  const Tensor packed = packed_rule_in(rule_in);
  const i64 sizes[4] = {d.j() * d.g_in, d.j() * d.g_out, d.local_size(), d.out()};

  Tensor grad_x;
  if (mask & 1) grad_x = torch::stable::empty_like(x);
  Tensor parts[4], sums[4];
  for (int k = 0; k < 4; ++k)
    if (mask >> (k + 1) & 1) parts[k] = empty(x, {chunks, sizes[k]});

  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Factors<T> factors{in<T>(packed), in<T>(rule_out), in<T>(local), nullptr};
    const T* from = in<T>(x);
    const T* from_grad = static_cast<const T*>(grad_y.const_data_ptr());
    T* const to_x = mask & 1 ? out<T>(grad_x) : nullptr;
    const i64 block = block_rows(rows, map_backward_scratch(d, 1) * sizeof(T), kLeastBackward);
    const auto part = [&](int k, i64 chunk) {
      return mask >> (k + 1) & 1 ? out<T>(parts[k]) + chunk * sizes[k] : nullptr;
    };
    for_each_task(chunks, [&](i64 chunk) {
      const i64 begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
      const Gradients<T> grads{part(0, chunk), part(1, chunk), part(2, chunk), part(3, chunk)};
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
    for (int k = 0; k < 4; ++k)
      if (mask >> (k + 1) & 1) {
        sums[k] = empty(x, {sizes[k]});
        sum_parts<T>(1, chunks, sizes[k], in<T>(parts[k]), out<T>(sums[k]));
      }
  });

  std::vector<Tensor> asked;
  if (mask & 1) asked.push_back(grad_x);
  if (mask & 2) asked.push_back(swapped_sides(torch::stable::view(sums[0], {d.terms, d.rank, d.g_in})));
  if (mask & 4) asked.push_back(torch::stable::view(sums[1], rule_out.sizes()));
  if (mask & 8) asked.push_back(torch::stable::view(sums[2], local.sizes()));
  if (mask & 16) asked.push_back(sums[3]);
  return asked;
}

}  // namespace mop
