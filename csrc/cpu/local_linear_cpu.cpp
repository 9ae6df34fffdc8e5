// local_linear: y = x (I (x) local) + bias for a narrow local, a half of a low-rank one. Backward sums the gradients of
// the local and of the bias over a fixed number of chunks of rows, so the result does not depend on the threads.
#include "cpu_ops.h"

namespace mop {
namespace {

constexpr i64 kMaxChunks = 8, kRowsAChunk = 512;
// Rows of a task of forward; rows fetched together; rows of a block of backward, which reads them three times.
constexpr i64 kForward = 256, kFetched = 32, kBackward = 64;

struct LocalDims {
  i64 width_in, width_out, groups, rows;  // rows of x (rows * groups, width_in) and of y (rows * groups, width_out)
};

LocalDims local_dims(const Tensor& x, const Tensor& local) {
  MOP_GUARD(local.dim() == 2 && local.numel() > 0 && x.dim() > 0);
  const i64 width_in = local.size(0), in = x.size(x.dim() - 1);
  MOP_GUARD(in > 0 && in % width_in == 0);
  return {width_in, local.size(1), in / width_in, x.numel() / in};
}

i64 rows_of_block(const LocalDims& d, i64 height) { return std::max<i64>(1, height / d.groups); }

}  // namespace

Tensor local_linear(Tensor x, Tensor local, std::optional<Tensor> bias) {
  const LocalDims d = local_dims(x, local);
  MOP_GUARD(fits(bias, d.groups * d.width_out));
  Tensor y = empty_rows(x, d.groups * d.width_out);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T *from = in<T>(x), *locals = in<T>(local), *biases = in<T>(bias);
    T* to = out<T>(y);
    const i64 block = rows_of_block(d, kForward), fetched = rows_of_block(d, kFetched);
    const bool stream = streams(to, d.width_out, d.rows * d.groups * d.width_out);
    for_each_task((d.rows + block - 1) / block, [&](i64 task) {
      const i64 n = task * block, at = n * d.groups;
      kernels<T>().local_forward({d.width_in, d.width_out, d.groups, std::min(block, d.rows - n), fetched, locals,
                                  biases, from + at * d.width_in, to + at * d.width_out, stream});
    });
  });
  return y;
}

std::vector<Tensor> local_linear_backward(Tensor grad, Tensor x, Tensor local, i64 mask) {
  const LocalDims d = local_dims(x, local);
  const i64 out_width = d.groups * d.width_out;
  MOP_GUARD(grad.size(grad.dim() - 1) == out_width && grad.numel() == d.rows * out_width);
  const Tensor grad_y = as_contiguous(grad), transposed = mask & 1 ? swapped_sides(local) : local;
  const i64 chunks = std::max<i64>(1, std::min(kMaxChunks, d.rows * d.groups / kRowsAChunk));
  const bool wide_out = d.width_in <= d.width_out;  // the gradient of the local has its wider side along the lanes
  const i64 narrow = std::min(d.width_in, d.width_out), wide = std::max(d.width_in, d.width_out);
  const SumOfParts locals_sum(mask & 2, x, chunks, {narrow, wide}), bias_sum(mask & 4, x, chunks, {out_width});
  std::vector<Tensor> asked;
  if (mask & 1) asked.push_back(empty_as(x));
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T *from = in<T>(x), *from_grad = in<T>(grad_y), *locals = in<T>(transposed);
    T* const to_x = mask & 1 ? out<T>(asked[0]) : nullptr;
    const i64 block = rows_of_block(d, kBackward);
    const bool stream = to_x && streams(to_x, d.width_in, x.numel());
    for_each_task(chunks, [&](i64 chunk) {
      const i64 begin = d.rows * chunk / chunks, end = d.rows * (chunk + 1) / chunks;
      T *const to_local = locals_sum.at<T>(chunk), *const to_bias = bias_sum.at<T>(chunk);
      for (i64 n = begin; n < end || n == begin; n += block) {  // without rows: once, to write the zeros
        const i64 at = n * d.groups, rows = std::min(block, end - n);
        kernels<T>().local_backward({d.width_in, d.width_out, d.groups, rows, std::min(block, end - n - rows), locals,
                                     from + at * d.width_in, from_grad + at * d.width_out,
                                     to_x ? to_x + at * d.width_in : nullptr, to_local, to_bias, n > begin, stream});
      }
    });
  });
  locals_sum.finish(asked);
  if (mask & 2 && !wide_out) asked.back() = swapped_sides(asked.back());
  bias_sum.finish(asked);
  return asked;
}

}  // namespace mop
