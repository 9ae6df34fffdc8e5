// The kernels of rms_norm, dropout_add, relu_dropout and gated_gelu_dropout on a block of rows, and of the loss on a
// row.
#pragma once

#include "dropout_bits.h"
#include "kernels.h"
#include "stages.h"
#include "vec_exp.h"

namespace {

using namespace mop;

// Calls body(column, lanes) for each register of a row. Only the last may have fewer lanes than a register.
template <class T, class Body>
MOP_INLINE void for_each_register(i64 width, const Body& body) {
  constexpr int W = kLanes<T>;
  i64 c = 0;
  for (; c + W <= width; c += W) body(c, W);
  if (c < width) body(c, int(width - c));
}

// Returns the sum of the lanes of term(column, lanes) over a row. Four registers hold the sums of a stretch of columns.
// The sums of the stretches are added in double, so that the error does not grow with the width.
template <class T, class Term>
MOP_INLINE double sum_of_row(i64 width, const Term& term) {
  constexpr int W = kLanes<T>, N = 4;
  constexpr i64 kStretch = 32 * N * W;
  double total = 0;
  for (i64 from = 0; from < width; from += kStretch) {
    const i64 end = smaller(width, from + kStretch);
    Vec<T> sums[N] = {};
    i64 c = from;
    for (; c + N * W <= end; c += N * W)
      for (int k = 0; k < N; ++k) sums[k] += term(c + k * W, W);
    for (; c < end; c += W) sums[0] += term(c, int(smaller(W, end - c)));
    total += sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

// Returns 1 / sqrt(mean(x^2) + eps) of a row.
template <class T>
MOP_INLINE double inverse_rms(i64 width, const T* x, double eps) {
  const double squares = sum_of_row<T>(width, [=](i64 c, int lanes) {
    const Vec<T> v = load_lanes(x + c, lanes);
    return v * v;
  });
  return 1 / __builtin_sqrt(squares / double(width) + eps);
}

template <class T>
void rms_norm(const RmsNorm<T>& m) {
  const i64 width = m.block.width;
  for (i64 n = 0; n < m.block.rows; ++n) {
    const T* x = m.x + n * width;
    T* y = m.y + n * width;
    const T r = T(inverse_rms(width, x, m.eps));
    for_each_register<T>(width, [=](i64 c, int lanes) {
      store_lanes(y + c, load_lanes(x + c, lanes) * r * load_lanes(m.weight + c, lanes), lanes);
    });
  }
}

template <class T>
void rms_norm_backward(const RmsNormBackward<T>& m) {
  const i64 width = m.block.width;
  for (i64 n = 0; n < m.block.rows; ++n) {
    const T *x = m.x + n * width, *grad = m.grad + n * width;
    const double inverse = inverse_rms(width, x, m.eps);
    const T r = T(inverse);
    if (m.grad_weight)
      for_each_register<T>(width, [=](i64 c, int lanes) {
        T* to = m.grad_weight + c;
        const Vec<T> part = load_lanes(grad + c, lanes) * (load_lanes(x + c, lanes) * r);
        store_lanes(to, n == 0 ? part : load_lanes(to, lanes) + part, lanes);
      });
    if (!m.grad_x) continue;
    const double along = sum_of_row<T>(width, [=](i64 c, int lanes) {
      return load_lanes(m.weight + c, lanes) * load_lanes(grad + c, lanes) * load_lanes(x + c, lanes);
    });
    const T of_x = T(inverse * inverse * inverse * (along / double(width)));
    T* to = m.grad_x + n * width;
    for_each_register<T>(width, [=](i64 c, int lanes) {
      const Vec<T> of_normal = load_lanes(m.weight + c, lanes) * load_lanes(grad + c, lanes);
      store_lanes(to + c, of_normal * r - load_lanes(x + c, lanes) * of_x, lanes);
    });
  }
}

// Calls body(row, column, lanes, keep) for each register of a block of rows, group of columns by group, and
// group_done(row, column) after each group that starts at the column. Without dropout no bits are made.
template <class T, class Body, class GroupDone>
MOP_INLINE void for_each_kept(const RowBlock& block, const Dropout& dropout, const Body& body,
                              const GroupDone& group_done) {
  constexpr int W = kLanes<T>, N = kDropoutGroup / W;
  Lanes<T> keep[N];
  for (int k = 0; k < N; ++k) keep[k] = Lanes<T>{} == Lanes<T>{};
  for (i64 n = 0; n < block.rows; ++n) {
    const DropoutRow row = dropout_row(dropout.seed, block.first + n);
    for (i64 c = 0; c < block.width; c += kDropoutGroup) {
      if (dropout.threshold > 0) dropout_keep<T>(row, dropout.threshold, c / kDropoutGroup, keep);
      if (c + kDropoutGroup <= block.width)
        for (int k = 0; k < N; ++k) body(n, c + k * W, W, keep[k]);
      else
        for (int k = 0; k < N && c + k * W < block.width; ++k)
          body(n, c + k * W, int(smaller(W, block.width - c - k * W)), keep[k]);
      group_done(n, c);
    }
  }
}

template <class T, class Body>
MOP_INLINE void for_each_kept(const RowBlock& block, const Dropout& dropout, const Body& body) {
  for_each_kept<T>(block, dropout, body, [](i64, i64) {});
}

template <class T>
void dropout_add(const DropoutAdd<T>& m) {
  const T scale = T(m.dropout.scale);
  for_each_kept<T>(m.block, m.dropout, [&](i64 n, i64 c, int lanes, Lanes<T> keep) {
    const i64 at = n * m.block.width + c;
    const Vec<T> y = dropped<T>(load_lanes(m.x + at, lanes) * scale, keep);
    store_lanes(m.y + at, m.residual ? load_lanes(m.residual + at, lanes) + y : y, lanes);
  });
}

template <class T>
void relu_dropout(const ReluDropout<T>& m) {
  const T scale = T(m.dropout.scale);
  const i64 bytes = (m.block.width + 7) / 8;
  unsigned bits = 0;
  for_each_kept<T>(
      m.block, m.dropout,
      [&](i64 n, i64 c, int lanes, Lanes<T> keep) {
        const i64 at = n * m.block.width + c;
        const Vec<T> x = load_lanes(m.x + at, lanes), zero = {};
        bits |= sign_bits(Vec<T>((x > zero) & keep)) << c % kDropoutGroup;
        const Vec<T> passed = x < zero ? zero : x;  // NaN passes, as in torch
        store_lanes(m.y + at, dropped<T>(passed * scale, keep), lanes);
      },
      [&](i64 n, i64 c) {
        unsigned char* to = m.bits + n * bytes + c / 8;
        to[0] = (unsigned char)(bits);
        if (c + 8 < m.block.width) to[1] = (unsigned char)(bits >> 8);
        bits = 0;
      });
}

template <class T>
void relu_dropout_backward(const ReluDropoutBackward<T>& m) {
  const i64 width = m.block.width, bytes = (width + 7) / 8;
  const T scale = T(m.scale);
  Lanes<T> own_bit;
  for (int k = 0; k < kLanes<T>; ++k) own_bit[k] = 1 << k;
  for (i64 n = 0; n < m.block.rows; ++n) {
    const T* grad = m.grad + n * width;
    const unsigned char* bits = m.bits + n * bytes;
    T* to = m.grad_x + n * width;
    for_each_register<T>(width, [=](i64 c, int lanes) {
      const int next = lanes > 8 ? bits[c / 8 + 1] << 8 : 0;
      const Lanes<T> here = (Lanes<T>{} + ((next | bits[c / 8]) >> c % 8)) & own_bit;
      store_lanes(to + c, dropped<T>(load_lanes(grad + c, lanes) * scale, here == own_bit), lanes);
    });
  }
}

template <class T>
struct GeluTanh {
  Vec<T> value, slope;
};

// Returns g (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (g + 0.044715 g^3), and its derivative in g. It is computed as
// g sigmoid(2 u): 1 + tanh(u) would cancel where g is negative. Only exp(-|2 u|) is needed, which cannot overflow.
template <class T>
MOP_INLINE GeluTanh<T> gelu_tanh(Vec<T> g) {
  constexpr double kLinear = 1.5957691216057307118, kCubic = kLinear * 0.044715;  // kLinear = 2 sqrt(2 / pi)
  const Vec<T> zero = {}, one = zero + T(1), square = g * g;
  const Vec<T> twice_u = g * (square * T(kCubic) + T(kLinear));
  const Vec<T> e = exp_lanes<T>(twice_u < zero ? twice_u : -twice_u);
  const Vec<T> positive = one / (one + e), negative = e * positive;  // sigmoid(|2 u|), sigmoid(-|2 u|)
  const Vec<T> sigmoid = twice_u < zero ? negative : positive;
  const Vec<T> bend = g * (positive * negative) * (square * T(3 * kCubic) + T(kLinear));
  return {g * sigmoid, sigmoid + dropped<T>(bend, e != zero)};  // where e is 0, its factor may be infinite
}

template <class T>
void gated_gelu_dropout(const GatedGeluDropout<T>& m) {
  const T scale = T(m.dropout.scale);
  for_each_kept<T>(m.block, m.dropout, [&](i64 n, i64 c, int lanes, Lanes<T> keep) {
    const i64 at = n * m.block.width + c;
    const Vec<T> y = gelu_tanh<T>(load_lanes(m.gate + at, lanes)).value * load_lanes(m.x + at, lanes);
    store_lanes(m.y + at, dropped<T>(y * scale, keep), lanes);
  });
}

template <class T>
void gated_gelu_dropout_backward(const GatedGeluDropoutBackward<T>& m) {
  const T scale = T(m.dropout.scale);
  for_each_kept<T>(m.block, m.dropout, [&](i64 n, i64 c, int lanes, Lanes<T> keep) {
    const i64 at = n * m.block.width + c;
    const Vec<T> grad = load_lanes(m.grad + at, lanes) * scale;
    const GeluTanh<T> of_gate = gelu_tanh<T>(load_lanes(m.gate + at, lanes));
    if (m.grad_gate) {
      const Vec<T> product = grad * load_lanes(m.x + at, lanes) * of_gate.slope;
      store_lanes(m.grad_gate + at, dropped<T>(product, keep), lanes);
    }
    if (m.grad_x) store_lanes(m.grad_x + at, dropped<T>(grad * of_gate.value, keep), lanes);
  });
}

template <class T>
T softmax_piece(i64 classes, T* logits, T* peak, T* total) {
  constexpr T kLeast = -T(__builtin_inf());
  Vec<T> lanes = Vec<T>{} + *peak;
  for_each_register<T>(classes, [&](i64 c, int some) {
    Vec<T> v = load_lanes(logits + c, some);
    if (some < kLanes<T>)
      for (int k = some; k < kLanes<T>; ++k) v[k] = kLeast;
    lanes = v > lanes ? v : lanes;  // passes over NaN, whose exp is NaN
  });
  T largest = lanes[0];
  for (int k = 1; k < kLanes<T>; ++k) largest = lanes[k] > largest ? lanes[k] : largest;
  const Vec<T> scale = exp_lanes<T>(Vec<T>{} + (*peak - largest));
  const double sum = sum_of_row<T>(classes, [&](i64 c, int some) {
    const Vec<T> e = exp_lanes<T>(load_lanes(logits + c, some) - largest);
    store_lanes(logits + c, e, some);
    if (some == kLanes<T>) return e;
    Vec<T> part = {};
    for (int k = 0; k < some; ++k) part[k] = e[k];
    return part;
  });
  *peak = largest;
  *total = T(*total * scale[0] + sum);
  return scale[0];
}

}  // namespace
