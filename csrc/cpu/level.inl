// The units of kernels.h, compiled once a level: MOP_LEVEL names the level and the compiler flags decide its registers.
#include <math.h>

#include "kernels.h"
#include "tiles.h"

namespace {

using namespace mop;

template <class T>
struct Arena {  // hands out whole lines of a unit's scratch
  T* next;
  T* take(i64 elements) {
    T* got = next;
    next += line(elements);
    return got;
  }
};

// The stages of y = x W, and their transposes.

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

// grad_t of one term (+)= grad_s local^T; `transposed` is room for local^T, [v, u]
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

// to[0 .. N vectors) (+)= the sum of the rows, in three levels: 32 rows, 32 such sums, then the rest. One running sum
// over n equal numbers drifts by n roundings, this one by 64 + n / 1024.
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

// The rows themselves where their columns are contiguous, otherwise a copy (an expanded gradient has strides 0).
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

// One map on a block of rows.

template <class T>
void stage3_to(const PhmDims& d, const Factors<T>& f, i64 rows, const T* s, T* y, bool streamed) {
  if (streamed)
    stage3<T, true>(d, f.rule_out, f.bias, rows, s, y);
  else
    stage3<T, false>(d, f.rule_out, f.bias, rows, s, y);
}

template <class T>
void map_forward(const MapForward<T>& m, T* scratch) {
  const PhmDims& d = m.dims;
  Arena<T> arena{scratch};
  T* t = arena.take(d.j() * m.rows * d.loc_in);
  T* s = arena.take(d.j() * m.rows * d.loc_out);
  stage1(d, m.factors.rule_in, m.rows, m.x, t);
  stage2(d, m.factors.local, m.rows, t, s);
  stage3_to(d, m.factors, m.rows, s, m.y, m.stream);
  if (m.stream) stream_fence();
}

// A full rule on few rows: s[i, (n a), v] = sum_u x[(n a), u] local[i, u, v], then the rule mixes (i, a) into c.
template <class T>
void local_first(const MapForward<T>& m, T* s) {
  const PhmDims& d = m.dims;
  const i64 height = m.rows * d.g_in;
  for (i64 i = 0; i < d.terms; ++i)
    product<T>(height, d.loc_out, d.loc_in, {m.x, d.loc_in, 1}, {m.factors.local + i * d.loc_in * d.loc_out, d.loc_out},
               {s + i * height * d.loc_out, d.loc_out});
  for (i64 n = 0; n < m.rows; ++n) {
    const Panel<T> y{m.y + n * d.out(), d.loc_out};
    for (i64 i = 0; i < d.terms; ++i) {
      const T* from = s + (i * height + n * d.g_in) * d.loc_out;
      product<T>(d.g_out, d.loc_out, d.g_in, {m.factors.rule_in + i * d.g_in * d.g_out, 1, d.g_out}, {from, d.loc_out},
                 y, {i == 0 ? m.factors.bias : y.data, d.loc_out});
    }
  }
}

template <class T>
void map_backward(const MapBackward<T>& m, T* scratch) {
  const PhmDims& d = m.dims;
  const Gradients<T>& g = m.grads;
  Arena<T> arena{scratch};
  i64 grad_row;
  const T* grad_y = dense_rows(m.grad_y, m.rows, d.out(), arena.take(m.rows * d.out()), &grad_row);
  if (g.bias) sum_rows(m.rows, d.out(), grad_y, grad_row, g.bias, m.accumulate);

  T* t = arena.take(d.j() * m.rows * d.loc_in);
  if (g.rule_out || g.local) stage1(d, m.factors.rule_in, m.rows, m.x, t);
  if (g.rule_out) {
    T* s = arena.take(d.j() * m.rows * d.loc_out);
    stage2(d, m.factors.local, m.rows, t, s);
    grad_rule_out(d, m.rows, s, grad_y, grad_row, g.rule_out, m.accumulate);
  }
  if (!g.local && !g.rule_in && !m.grad_x) return;

  T* grad_s = arena.take(d.j() * m.rows * d.loc_out);
  stage3_transposed(d, m.factors.rule_out, m.rows, grad_y, grad_row, grad_s);
  if (g.local) grad_local(d, m.rows, t, grad_s, g.local, m.accumulate);
  if (!g.rule_in && !m.grad_x) return;

  T* grad_t = arena.take(d.j() * m.rows * d.loc_in);
  T* transposed = arena.take(d.loc_in * d.loc_out);
  const i64 height = d.rank * m.rows;
  for (i64 i = 0; i < d.terms; ++i)
    stage2_transposed(d, m.factors.local + i * d.loc_in * d.loc_out, height, grad_s + i * height * d.loc_out,
                      grad_t + i * height * d.loc_in, transposed, false);
  if (g.rule_in) grad_rule_in(d, d.j(), m.rows, grad_t, m.x, g.rule_in, m.accumulate);
  if (m.grad_x) stage1_transposed(d, m.factors.rule_in, m.rows, grad_t, m.grad_x);
}

// The activation and its derivative. Libm is called through builtins: no inline function of std:: may be used here.

MOP_INLINE float exp_of(float x) { return __builtin_expf(x); }
MOP_INLINE double exp_of(double x) { return __builtin_exp(x); }
MOP_INLINE float erf_of(float x) { return __builtin_erff(x); }
MOP_INLINE double erf_of(double x) { return __builtin_erf(x); }
MOP_INLINE float tanh_of(float x) { return __builtin_tanhf(x); }
MOP_INLINE double tanh_of(double x) { return __builtin_tanh(x); }

template <class T>
MOP_INLINE T activated(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x < T(0) ? T(0) : x;  // NaN passes, as in torch
    case Activation::gelu:
      return T(0.5) * x * (T(1) + erf_of(x * T(M_SQRT1_2)));
    case Activation::gelu_tanh:
      return T(0.5) * x * (T(1) + tanh_of(T(M_SQRT2 * M_2_SQRTPI * 0.5) * (x + T(0.044715) * x * x * x)));
    case Activation::tanh:
      return tanh_of(x);
    case Activation::silu:
      return x / (T(1) + exp_of(-x));
    case Activation::identity:
      return x;
  }
  return x;
}

template <class T>
MOP_INLINE T slope(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x > T(0) ? T(1) : T(0);
    case Activation::gelu:
      return T(0.5) * (T(1) + erf_of(x * T(M_SQRT1_2))) + x * exp_of(T(-0.5) * x * x) * T(M_2_SQRTPI * M_SQRT1_2 * 0.5);
    case Activation::gelu_tanh: {
      const T scale = T(M_SQRT2 * M_2_SQRTPI * 0.5);
      const T tanh = tanh_of(scale * (x + T(0.044715) * x * x * x));
      return T(0.5) * (T(1) + tanh) + T(0.5) * x * (T(1) - tanh * tanh) * scale * (T(1) + T(3 * 0.044715) * x * x);
    }
    case Activation::tanh: {
      const T tanh = tanh_of(x);
      return T(1) - tanh * tanh;
    }
    case Activation::silu: {
      const T sigmoid = T(1) / (T(1) + exp_of(-x));
      return sigmoid * (T(1) + x * (T(1) - sigmoid));
    }
    case Activation::identity:
      return T(1);
  }
  return T(1);
}

template <class T>
void activate(Activation activation, i64 count, const T* x, T* y) {
  if (activation == Activation::relu)  // apart, so that it vectorises
    for (i64 k = 0; k < count; ++k) y[k] = x[k] < T(0) ? T(0) : x[k];
  else
    for (i64 k = 0; k < count; ++k) y[k] = activated(activation, x[k]);
}

// grad[k] = (grad[k] + more[k] ...) * slope(x[k])
template <class T>
void times_slope(Activation activation, i64 count, const T* x, T* grad) {
  if (activation == Activation::relu)
    for (i64 k = 0; k < count; ++k) grad[k] = x[k] > T(0) ? grad[k] : T(0);
  else
    for (i64 k = 0; k < count; ++k) grad[k] *= slope(activation, x[k]);
}

// The generator of one pair on a block of rows.

template <class T>
void pair_forward(const PairForward<T>& p, T* scratch) {
  const PhmDims &down = p.down_dims, &up = p.up_dims;
  Arena<T> arena{scratch};
  T* s = arena.take(down.j() * p.rows * down.loc_out);
  T* hidden = arena.take(p.rows * down.out());
  stage2(down, p.down.local, p.rows, p.t, s);
  stage3<T, false>(down, p.down.rule_out, p.down.bias, p.rows, s, hidden);
  activate(p.activation, p.rows * down.out(), hidden, hidden);
  for (int m = 0; m < p.maps; ++m) {
    const MapForward<T> map{up, p.ups[m], p.rows, hidden, p.y[m], p.stream};
    map_forward(map, arena.next);
  }
}

template <class T>
bool asks(const Gradients<T>& g) {
  return g.rule_in || g.rule_out || g.local || g.bias;
}

template <class T>
void pair_backward(const PairBackward<T>& p, T* scratch) {
  const PhmDims &down = p.down_dims, &up = p.up_dims;
  const i64 count = p.rows * down.out();
  Arena<T> arena{scratch};
  T* s = arena.take(down.j() * p.rows * down.loc_out);
  T* before = arena.take(count);
  T* hidden = arena.take(count);
  stage2(down, p.down.local, p.rows, p.t, s);
  stage3<T, false>(down, p.down.rule_out, p.down.bias, p.rows, s, before);
  activate(p.activation, count, before, hidden);

  const Gradients<T>& g = p.down_grads;
  const bool asked_before = asks(g) || p.down_grad_s;
  T* grad = arena.take(count);
  T* part = arena.take(count);
  for (int m = 0; m < p.maps; ++m) {
    T* grad_x = !asked_before ? nullptr : m == 0 ? grad : part;
    const MapBackward<T> map{up, p.ups[m], p.rows, hidden, p.grad_y[m], p.up_grads[m], grad_x, p.accumulate};
    map_backward(map, arena.next);
    if (asked_before && m > 0)
      for (i64 k = 0; k < count; ++k) grad[k] += part[k];
  }
  if (!asked_before) return;

  times_slope(p.activation, count, before, grad);
  if (g.bias) sum_rows(p.rows, down.out(), grad, down.out(), g.bias, p.accumulate);
  if (g.rule_out) grad_rule_out(down, p.rows, s, grad, down.out(), g.rule_out, p.accumulate);
  if (!g.local && !p.down_grad_s) return;
  T* grad_s = p.down_grad_s ? p.down_grad_s : arena.take(down.j() * p.rows * down.loc_out);
  stage3_transposed(down, p.down.rule_out, p.rows, grad, down.out(), grad_s);
  if (g.local) grad_local(down, p.rows, p.t, grad_s, g.local, p.accumulate);
}

template <class T>
void down_tail(const DownTail<T>& p, T* transposed) {
  const PhmDims& d = p.dims;
  for (i64 pair = 0; pair < p.pairs; ++pair)
    for (i64 n = 0; n < p.rows; n += p.block_rows) {
      const i64 rows = p.rows - n < p.block_rows ? p.rows - n : p.block_rows;
      const i64 height = d.rank * rows, before = p.term * height;
      stage2_transposed(d, p.local[pair] + p.term * d.loc_in * d.loc_out, height,
                        p.grad_s[pair] + d.j() * n * d.loc_out + before * d.loc_out,
                        p.grad_t + d.j() * n * d.loc_in + before * d.loc_in, transposed, pair > 0);
    }
  if (!p.rule_in) return;
  for (i64 n = 0; n < p.rows || n == 0; n += p.block_rows) {  // no row: once, to write the zeros
    const i64 rows = p.rows - n < p.block_rows ? p.rows - n : p.block_rows;
    grad_rule_in(d, d.rank, rows, p.grad_t + d.j() * n * d.loc_in + p.term * d.rank * rows * d.loc_in, p.x + n * d.in(),
                 p.rule_in + p.term * d.rank * d.g_in, n > 0);
  }
}

// The dense weight: the rows (a, u) of one a, all u; and its gradients.

template <class T>
void weight_rows(const PhmDims& d, i64 a, const T* rule, const T* local, T* weight) {
  for (i64 u = 0; u < d.loc_in; ++u)
    product<T>(d.g_out, d.loc_out, d.terms, {rule + a * d.g_out, 1, d.g_in * d.g_out},
               {local + u * d.loc_out, d.loc_in * d.loc_out}, {weight + (a * d.loc_in + u) * d.out(), d.loc_out});
}

template <class T>
void weight_grad_rule(const PhmDims& d, i64 a, const T* grad, const T* local, T* rule) {
  dots<T>(d.terms, d.g_out, d.loc_in, d.loc_out, {local, d.loc_in * d.loc_out, d.loc_out},
          {grad + a * d.loc_in * d.out(), d.loc_out, d.out()}, rule + a * d.g_out, d.g_in * d.g_out, 1, false);
}

template <class T>
void weight_grad_local(const PhmDims& d, i64 u, const T* grad, const T* rule, T* local) {
  for (i64 a = 0; a < d.g_in; ++a) {
    const Panel<T> to{local + u * d.loc_out, d.loc_in * d.loc_out};
    product<T>(d.terms, d.loc_out, d.g_out, {rule + a * d.g_out, d.g_in * d.g_out, 1},
               {grad + (a * d.loc_in + u) * d.out(), d.loc_out}, to, {a > 0 ? to.data : nullptr, to.row});
  }
}

template <class T>
void sum_rows_to(i64 rows, i64 width, const T* from, i64 row, T* to) {
  sum_rows(rows, width, from, row, to, false);
}

template <class T>
constexpr Kernels<T> kTable = {stage1<T>,        map_forward<T>,      map_backward<T>,      pair_forward<T>,
                               pair_backward<T>, down_tail<T>,        stage1_transposed<T>, local_first<T>,
                               weight_rows<T>,   weight_grad_rule<T>, weight_grad_local<T>, sum_rows_to<T>};

}  // namespace

namespace mop::MOP_LEVEL {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
const Kernels<float> kFloat = kTable<float>;
const Kernels<double> kDouble = kTable<double>;
}  // namespace mop::MOP_LEVEL
