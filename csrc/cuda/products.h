// The products and sums that the ops are made of: one launch, or two if a sum is split over blocks (products_cuda.cu).
#pragma once

#include "launch.h"
#include "matmul_kernel.cuh"

namespace mop {

inline Axis axis(i64 size, i64 first, i64 second, i64 third = 0) {
  return {size, std::max<i64>(1, size), {0, first}, {0, second}, {0, third}};
}

// An axis of index pairs (outer, inner), and the strides of both levels in each tensor.
inline Axis axis(i64 outer, i64 inner, Strides first, Strides second, Strides third = {}) {
  if (inner == 1) return axis(outer, first.outer_stride, second.outer_stride, third.outer_stride);
  return {outer * inner, inner, first, second, third};
}

// Launches p, whose axes, a, b, c and bias are set. c is dense, with c_size elements. `like` gives workspace its
// device. With few tiles and a long k, k is split over blocks, which costs one more launch.
template <class T>
void matmul(const Launch& launch, const Tensor& like, const char* name, Matmul<T> p, i64 c_size);

// Writes to[g, e] = sum over p of from[g, p, e], in an order that depends only on the sizes.
template <class In, class Out>
void sum_parts(const Launch& launch, const Tensor& like, const In* from, i64 groups, i64 parts, i64 size, Out* to);

}  // namespace mop
