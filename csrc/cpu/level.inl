// The units of kernels.h, compiled once a level: MOP_LEVEL names the level and the compiler flags decide its registers.
#include "activation.h"
#include "kernels.h"
#include "stages.h"

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
