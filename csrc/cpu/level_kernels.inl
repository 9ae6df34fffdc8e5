// The kernels of one instruction level: all functions of kernels.h, compiled once per level. MOP_LEVEL names the level,
// and the compiler flags decide its registers.
#include "attempt_mix_kernels.h"
#include "kernels.h"
#include "prefix_attention_kernels.h"
#include "rowwise_kernels.h"
#include "stages.h"

namespace {

using namespace mop;

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
  for (i64 n = 0; n < p.rows || n == 0; n += p.block_rows) {  // without rows: once, to write the zeros
    const i64 rows = p.rows - n < p.block_rows ? p.rows - n : p.block_rows;
    grad_rule_in(d, d.rank, rows, p.grad_t + d.j() * n * d.loc_in + p.term * d.rank * rows * d.loc_in, p.x + n * d.in(),
                 p.rule_in + p.term * d.rank * d.g_in, n > 0);
  }
}

// A full rule without W, on few rows.

// s[i, (n a), v] = sum_u x[(n a), u] local[i, u, v], then the rule mixes (i, a) into c.
template <class T>
void local_first(const FullRuleForward<T>& m, T* s) {
  const PhmDims& d = m.dims;
  const i64 height = m.rows * d.g_in;
  for (i64 i = 0; i < d.terms; ++i)
    product<T>(height, m.columns, d.loc_in, {m.x, d.loc_in, 1},
               {m.local + i * d.loc_in * d.loc_out + m.column, d.loc_out}, {s + i * height * m.columns, m.columns});
  for (i64 n = 0; n < m.rows; ++n) {
    const Panel<T> y{m.y + n * d.out() + m.column, d.loc_out};
    for (i64 i = 0; i < d.terms; ++i) {
      const T* from = s + (i * height + n * d.g_in) * m.columns;
      const T* init = i > 0 ? y.data : m.bias ? m.bias + m.column : nullptr;
      product<T>(d.g_out, m.columns, d.g_in, {m.rule + i * d.g_in * d.g_out, 1, d.g_out}, {from, m.columns}, y,
                 {init, d.loc_out});
    }
  }
}

// t[(n c), u] = sum_a x[n, a, u] rule[a, c] of one term; t_row: elements from one (n c) to the next
template <class T>
void mix_sides(const PhmDims& d, i64 rows, const T* rule, const T* x, T* t, i64 t_row) {
  for (i64 n = 0; n < rows; ++n)
    product<T>(d.g_out, d.loc_in, d.g_in, {rule, 1, d.g_out}, {x + n * d.in(), d.loc_in},
               {t + n * d.g_out * t_row, t_row});
}

// y[(n c), v] = sum_(i u) t[(n c), (i u)] local[(i u), v]: one product, as deep as all terms together
template <class T>
void rule_first(const FullRuleForward<T>& m, T* t) {
  const PhmDims& d = m.dims;
  const i64 depth = d.terms * d.loc_in;
  for (i64 i = 0; i < d.terms; ++i) mix_sides(d, m.rows, m.rule + i * d.g_in * d.g_out, m.x, t + i * d.loc_in, depth);
  const Panel<T> y{m.y + m.column, d.loc_out};
  if (m.bias)
    for (i64 row = 0; row < m.rows * d.g_out; ++row)
      for (i64 v = 0; v < m.columns; ++v) y.data[row * y.row + v] = m.bias[row % d.g_out * d.loc_out + m.column + v];
  product<T>(m.rows * d.g_out, m.columns, depth, {t, depth, 1}, {m.local + m.column, d.loc_out}, y,
             {m.bias ? y.data : nullptr, y.row});
}

template <class T>
void rule_first_backward(const FullRuleBackward<T>& m, T* scratch) {
  const PhmDims& d = m.dims;
  const i64 height = m.rows * d.g_out;
  Arena<T> arena{scratch};
  if (m.grad_local) {
    T* t = arena.take(height * d.loc_in);
    mix_sides(d, m.rows, m.rule, m.x, t, d.loc_in);
    product<T>(d.loc_in, d.loc_out, height, {t, 1, d.loc_in}, {m.grad_y, d.loc_out}, {m.grad_local, d.loc_out},
               {m.accumulate ? m.grad_local : nullptr, d.loc_out});
  }
  if (!m.grad_rule && !m.grad_x) return;
  T* grad_t = arena.take(height * d.loc_in);
  if (height < d.loc_out)  // few rows: their sums over lanes cost less than the transpose of the local
    dots<T>(height, d.loc_in, 1, d.loc_out, {m.grad_y, d.loc_out, 0}, {m.local, d.loc_out, 0}, grad_t, d.loc_in, 1,
            false);
  else
    stage2_transposed(d, m.local, height, m.grad_y, grad_t, arena.take(d.loc_in * d.loc_out), false);
  if (m.grad_rule)
    dots<T>(d.g_in, d.g_out, m.rows, d.loc_in, {m.x, d.loc_in, d.in()}, {grad_t, d.loc_in, d.g_out * d.loc_in},
            m.grad_rule, d.g_out, 1, m.accumulate);
  if (m.grad_x)
    for (i64 n = 0; n < m.rows; ++n)
      product<T>(d.g_in, d.loc_in, d.g_out, {m.rule, d.g_out, 1}, {grad_t + n * d.g_out * d.loc_in, d.loc_in},
                 {m.grad_x + n * d.in(), d.loc_in});
}

// The local alone. Its rows are read once, at the rate of the memory: the rows of the next block are fetched while this
// block is multiplied, since the processor does not see ahead in eight short rows at a time.

template <class T>
MOP_INLINE void fetch(const T* from, i64 count) {
  constexpr i64 kLine = 64 / i64(sizeof(T));
  for (i64 k = 0; k < count; k += kLine) __builtin_prefetch(from + k, 0, 2);
}

// y = x local + bias; STREAM as in `product`
template <class T, bool STREAM>
void local_rows(const LocalForward<T>& m, i64 rows, const T* x, T* y) {
  const Panel<const T> local{m.local, m.width_out};
  if (m.bias == nullptr || m.groups == 1)
    return product<T, STREAM>(rows * m.groups, m.width_out, m.width_in, {x, m.width_in, 1}, local, {y, m.width_out},
                              {m.bias, 0});
  for (i64 n = 0; n < rows; ++n)
    product<T, STREAM>(m.groups, m.width_out, m.width_in, {x + n * m.groups * m.width_in, m.width_in, 1}, local,
                       {y + n * m.groups * m.width_out, m.width_out}, {m.bias, m.width_out});
}

template <class T>
void local_forward(const LocalForward<T>& m) {
  const i64 in = m.groups * m.width_in, out = m.groups * m.width_out, block = m.fetched;
  for (i64 n = 0; n < m.rows; n += block) {
    const i64 rows = smaller(block, m.rows - n);
    fetch(m.x + (n + rows) * in, smaller(block, m.rows - n - rows) * in);
    if (m.stream)
      local_rows<T, true>(m, rows, m.x + n * in, m.y + n * out);
    else
      local_rows<T, false>(m, rows, m.x + n * in, m.y + n * out);
  }
  if (m.stream) stream_fence();
}

template <class T>
void local_backward(const LocalBackward<T>& m) {
  const i64 height = m.rows * m.groups, in = m.groups * m.width_in, out = m.groups * m.width_out;
  fetch(m.grad_y + m.rows * out, m.fetched * out);
  if (m.grad_local) fetch(m.x + m.rows * in, m.fetched * in);
  if (m.grad_x) {
    const Matrix<T> grad{m.grad_y, m.width_out, 1};
    const Panel<const T> transposed{m.transposed, m.width_in};
    const Panel<T> to{m.grad_x, m.width_in};
    if (m.stream)
      product<T, true>(height, m.width_in, m.width_out, grad, transposed, to);
    else
      product<T>(height, m.width_in, m.width_out, grad, transposed, to);
  }
  if (m.grad_local) {
    const bool wide_out = m.width_in <= m.width_out;
    const i64 few = wide_out ? m.width_in : m.width_out, many = wide_out ? m.width_out : m.width_in;
    const Panel<T> to{m.grad_local, many};
    product<T>(few, many, height, {wide_out ? m.x : m.grad_y, 1, few}, {wide_out ? m.grad_y : m.x, many}, to,
               {m.accumulate ? to.data : nullptr, many});
  }
  if (m.grad_bias) sum_rows(m.rows, out, m.grad_y, out, m.grad_bias, m.accumulate);
  if (m.stream) stream_fence();
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
constexpr Kernels<T> kTable = {stage1<T>,
                               map_forward<T>,
                               map_backward<T>,
                               pair_forward<T>,
                               pair_backward<T>,
                               down_tail<T>,
                               stage1_transposed<T>,
                               local_first<T>,
                               rule_first<T>,
                               rule_first_backward<T>,
                               local_forward<T>,
                               local_backward<T>,
                               weight_rows<T>,
                               weight_grad_rule<T>,
                               weight_grad_local<T>,
                               pool<T>,
                               prompt_mix<T>,
                               prompt_mix_backward<T>,
                               prompt_head<T>,
                               prompt_head_backward<T>,
                               sum_products<T>,
                               sum_rows_to<T>,
                               attention_forward<T>,
                               attention_backward<T>,
                               rms_norm<T>,
                               rms_norm_backward<T>,
                               dropout_add<T>,
                               relu_dropout<T>,
                               relu_dropout_backward<T>,
                               gated_gelu_dropout<T>,
                               gated_gelu_dropout_backward<T>,
                               softmax_piece<T>};

}  // namespace

namespace mop::MOP_LEVEL {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
const Kernels<float> kFloat = kTable<float>;
const Kernels<double> kDouble = kTable<double>;
}  // namespace mop::MOP_LEVEL
