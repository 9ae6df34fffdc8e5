// The three stages of y = x W on a block of rows, their transposes, and the gradients of the factors.
#pragma once

#include "../activation.h"
#include "kernels.h"
#include "tiles.h"

namespace {

using namespace mop;

template <class T>
struct Arena {  // hands out whole lines of a kernel's scratch
  T* next;
  T* take(i64 elements) {
    T* got = next;
    next += line(elements);
    return got;
  }
};

template <class T>
void stage1(const PhmDims& d, const T* rule_in, i64 rows, const T* x, T* t) {
  for (i64 n = 0; n < rows; ++n)
    product<T>(d.j(), d.loc_in, d.g_in, {rule_in, d.g_in, 1}, {x + n * d.in(), d.loc_in},
               {t + n * d.loc_in, rows * d.loc_in});
}

template <class T>
void stage2(const PhmDims& d, const T* local, i64 rows, const T* t, T* s) {
  const i64 height = d.rank * rows;
  for (i64 i = 0; i < d.terms; ++i)
    product<T>(height, d.loc_out, d.loc_in, {t + i * height * d.loc_in, d.loc_in, 1},
               {local + i * d.loc_in * d.loc_out, d.loc_out}, {s + i * height * d.loc_out, d.loc_out});
}

template <class T, bool STREAM>
void stage3(const PhmDims& d, const T* rule_out, const T* bias, i64 rows, const T* s, T* y) {
  for (i64 n = 0; n < rows; ++n)
    product<T, STREAM>(d.g_out, d.loc_out, d.j(), {rule_out, 1, d.g_out}, {s + n * d.loc_out, rows * d.loc_out},
                       {y + n * d.out(), d.loc_out}, {bias, d.loc_out});
}

template <class T>
void stage3_transposed(const PhmDims& d, const T* rule_out, i64 rows, const T* grad_y, i64 grad_row, T* grad_s) {
  for (i64 n = 0; n < rows; ++n)
    product<T>(d.j(), d.loc_out, d.g_out, {rule_out, d.g_out, 1}, {grad_y + n * grad_row, d.loc_out},
               {grad_s + n * d.loc_out, rows * d.loc_out});
}

// grad_t of one term (+)= grad_s local^T; `transposed` is scratch for local^T, [v, u]
template <class T>
void stage2_transposed(const PhmDims& d, const T* local, i64 height, const T* grad_s, T* grad_t, T* transposed,
                       bool accumulate) {
  transpose(d.loc_in, d.loc_out, local, transposed);
  product<T>(height, d.loc_in, d.loc_out, {grad_s, d.loc_out, 1}, {transposed, d.loc_in}, {grad_t, d.loc_in},
             {accumulate ? grad_t : nullptr, d.loc_in});
}

template <class T>
void stage1_transposed(const PhmDims& d, const T* rule_in, i64 rows, const T* grad_t, T* grad_x) {
  for (i64 n = 0; n < rows; ++n)
    product<T>(d.g_in, d.loc_in, d.j(), {rule_in, 1, d.g_in}, {grad_t + n * d.loc_in, rows * d.loc_in},
               {grad_x + n * d.in(), d.loc_in});
}

// The gradients of the factors.

template <class T>
void grad_rule_out(const PhmDims& d, i64 rows, const T* s, const T* grad_y, i64 grad_row, T* to, bool accumulate) {
  dots<T>(d.j(), d.g_out, rows, d.loc_out, {s, rows * d.loc_out, d.loc_out}, {grad_y, d.loc_out, grad_row}, to, d.g_out,
          1, accumulate);
}

template <class T>
void grad_local(const PhmDims& d, i64 rows, const T* t, const T* grad_s, T* to, bool accumulate) {
  const i64 height = d.rank * rows;
  for (i64 i = 0; i < d.terms; ++i) {
    T* at = to + i * d.loc_in * d.loc_out;
    product<T>(d.loc_in, d.loc_out, height, {t + i * height * d.loc_in, 1, d.loc_in},
               {grad_s + i * height * d.loc_out, d.loc_out}, {at, d.loc_out}, {accumulate ? at : nullptr, d.loc_out});
  }
}

template <class T>
void grad_rule_in(const PhmDims& d, i64 j, i64 rows, const T* grad_t, const T* x, T* to, bool accumulate) {
  dots<T>(j, d.g_in, rows, d.loc_in, {grad_t, rows * d.loc_in, d.loc_in}, {x, d.loc_in, d.in()}, to, d.g_in, 1,
          accumulate);
}

MOP_INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// to[0 .. N vectors) (+)= the sum of the rows, in three steps: sums of 32 rows, sums of 32 such sums, then their sum.
// One running sum over n equal numbers drifts by n roundings, this sum by 64 + n / 1024.
template <class Lanes, int N, class Load>
MOP_INLINE void cascade(i64 rows, Lanes* total, const Load& load_row) {
  constexpr i64 kStretch = 32, kGroup = 32 * kStretch;
  for (i64 n0 = 0; n0 < rows; n0 += kGroup) {
    Lanes group[N] = {};
    for (i64 n1 = n0; n1 < smaller(rows, n0 + kGroup); n1 += kStretch) {
      Lanes part[N] = {};
      for (i64 n = n1; n < smaller(rows, n1 + kStretch); ++n)
        for (int k = 0; k < N; ++k) part[k] += load_row(n, k);
      for (int k = 0; k < N; ++k) group[k] += part[k];
    }
    for (int k = 0; k < N; ++k) total[k] += group[k];
  }
}

template <class T>
void sum_rows(i64 rows, i64 width, const T* from, i64 row, T* to, bool accumulate) {
  constexpr int W = kLanes<T>, N = 8;
  i64 w = 0;
  for (; w + N * W <= width; w += N * W) {
    Vec<T> total[N];
    for (int k = 0; k < N; ++k) total[k] = accumulate ? load(to + w + k * W) : Vec<T>{};
    cascade<Vec<T>, N>(rows, total, [=](i64 n, int k) { return load(from + n * row + w + k * W); });
    for (int k = 0; k < N; ++k) store(to + w + k * W, total[k]);
  }
  for (; w < width; ++w) {
    T total[1] = {accumulate ? to[w] : T(0)};
    cascade<T, 1>(rows, total, [=](i64 n, int) { return from[n * row + w]; });
    to[w] = total[0];
  }
}

// Returns the rows themselves if their columns are contiguous, or else a copy (an expanded gradient has strides 0).
template <class T>
const T* dense_rows(Rows<T> from, i64 rows, i64 width, T* room, i64* row) {
  if (from.col == 1) {
    *row = from.row;
    return from.data;
  }
  for (i64 n = 0; n < rows; ++n)
    for (i64 w = 0; w < width; ++w) room[n * width + w] = from.data[n * from.row + w * from.col];
  *row = width;
  return room;
}

// The activation of all numbers of a block of rows.

template <class T>
void activate(Activation activation, i64 count, const T* x, T* y) {
  if (activation == Activation::relu)  // apart, so that it vectorises
    for (i64 k = 0; k < count; ++k) y[k] = x[k] < T(0) ? T(0) : x[k];
  else
    for (i64 k = 0; k < count; ++k) y[k] = activated(activation, x[k]);
}

// grad[k] *= slope(x[k])
template <class T>
void times_slope(Activation activation, i64 count, const T* x, T* grad) {
  if (activation == Activation::relu)
    for (i64 k = 0; k < count; ++k) grad[k] = x[k] > T(0) ? grad[k] : T(0);
  else
    for (i64 k = 0; k < count; ++k) grad[k] *= slope(activation, x[k]);
}

}  // namespace
