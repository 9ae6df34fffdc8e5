// The kernels of attempt_mix: the copy of x that takes its maximum, the mix of prompts, the attention, their gradients.
//
// The result of an example does not depend on the other examples of its block: products run over fewer than kMinRows
// rows, which have one order of summation (tiles.h).
#pragma once

#include "stages.h"

namespace {

using namespace mop;

MOP_INLINE float root_of(float x) { return __builtin_sqrtf(x); }
MOP_INLINE double root_of(double x) { return __builtin_sqrt(x); }

template <class T>
MOP_INLINE bool is_nan(T x) {
  return x != x;
}

// scratch: the largest numbers so far, then their rows, as integers as wide as T.
template <class T>
void pool(const Pool<T>& p, T* scratch) {
  constexpr int W = kLanes<T>;
  typedef decltype(Vec<T>{} > Vec<T>{}) Lanes;
  typedef __typeof__(Lanes{}[0]) Row;
  T* best = scratch;
  Row* where = reinterpret_cast<Row*>(scratch + line(p.columns));
  bool found = false;
  for (i64 n = 0; n < p.rows; ++n) {
    const T* x = p.x + n * p.row;
    T* y = p.y ? p.y + n * p.row : nullptr;
    const bool counts = p.keep == nullptr || p.keep[n];
    const bool first = counts && !found;
    const Lanes row = Lanes{} + Row(n);
    i64 c = 0;
    for (; c + W <= p.columns; c += W) {
      const Vec<T> v = load(x + c);
      if (p.stream)
        stream(y + c, v);
      else if (y)
        store(y + c, v);
      if (!counts) continue;
      Vec<T> b = v;
      Lanes at = row;
      if (!first) {
        b = load(best + c);
        memcpy(&at, where + c, sizeof(at));
        const Lanes larger = (v > b) | ((v != v) & (b == b));
        b = larger ? v : b;
        at = larger ? row : at;
      }
      store(best + c, b);
      memcpy(where + c, &at, sizeof(at));
    }
    for (; c < p.columns; ++c) {
      if (y) y[c] = x[c];
      if (counts && (first || x[c] > best[c] || (is_nan(x[c]) && !is_nan(best[c])))) {
        best[c] = x[c];
        where[c] = Row(n);
      }
    }
    found = found || counts;
  }
  for (i64 c = 0; c < p.columns; ++c) {
    p.peak[c] = found ? best[c] : T(0);
    p.position[c] = found ? int32_t(where[c]) : -1;
  }
  if (p.stream) stream_fence();
}

// y[b] = target[task of b] + sum_j attention[b, j] prompt_j; N vectors, the last with `tail` lanes.
template <class T, int N>
MOP_INLINE void mix_columns(const Prompts<T>& p, i64 b, i64 column, int tail, T* y, bool streamed) {
  constexpr int W = kLanes<T>;
  const T* attention = p.attention + b * (p.sources + 1);
  const T* own = p.target + p.tasks[b] * p.size + column;
  const auto part = [tail](const T* from, int k) {
    return k == N - 1 && tail < W ? load_first(from + k * W, tail) : load(from + k * W);
  };
  Vec<T> acc[N] = {};
  for (i64 j = 0; j < p.sources; ++j)
    for (int k = 0; k < N; ++k) acc[k] += attention[j] * part(p.source + j * p.size + column, k);
  for (int k = 0; k < N; ++k) {
    acc[k] += (T(1) + attention[p.sources]) * part(own, k);
    if (k == N - 1 && tail < W)
      store_first(y + k * W, acc[k], tail);
    else if (streamed)
      stream(y + k * W, acc[k]);
    else
      store(y + k * W, acc[k]);
  }
}

template <class T>
void prompt_mix(const PromptMix<T>& m) {
  constexpr int W = kLanes<T>, N = 4;
  for (i64 b = 0; b < m.prompts.examples; ++b) {
    T* y = m.y + b * m.row + m.column;
    i64 c = 0;
    for (; c + N * W <= m.columns; c += N * W) mix_columns<T, N>(m.prompts, b, m.column + c, W, y + c, m.stream);
    for (; c < m.columns; c += W) {
      const int tail = m.columns - c < W ? int(m.columns - c) : W;
      mix_columns<T, 1>(m.prompts, b, m.column + c, tail, y + c, m.stream);
    }
  }
  if (m.stream) stream_fence();
}

template <class T>
void prompt_mix_backward(const PromptMixBackward<T>& m) {
  const Prompts<T>& p = m.prompts;
  const i64 candidates = p.sources + 1;
  const T* grad = m.grad + m.column;
  dots<T>(p.examples, p.sources, 1, m.columns, {grad, m.row, 0}, {p.source + m.column, p.size, 0}, m.attention,
          candidates, 1, false);
  for (i64 b = 0; b < p.examples; ++b)
    dots<T>(1, 1, 1, m.columns, {grad + b * m.row, 0, 0}, {p.target + p.tasks[b] * p.size + m.column, 0, 0},
            m.attention + b * candidates + p.sources, 1, 1, false);
  if (m.source)
    product<T>(p.sources, m.columns, p.examples, {p.attention, 1, candidates}, {grad, m.row},
               {m.source + m.column, p.size});
  if (!m.target) return;
  for (i64 task = 0; task < m.tasks; ++task)
    for (i64 c = 0; c < m.columns; ++c) m.target[task * p.size + m.column + c] = T(0);
  for (i64 b = 0; b < p.examples; ++b) {
    T* to = m.target + p.tasks[b] * p.size + m.column;
    const T* from = grad + b * m.row;
    const T weight = T(1) + p.attention[b * candidates + p.sources];
    for (i64 c = 0; c < m.columns; ++c) to[c] += weight * from[c];
  }
}

// C = A B in stretches of the depth, each summed by itself.
template <class T>
MOP_INLINE void stretched_product(i64 rows, i64 columns, i64 depth, const T* a, const T* b, T* c) {
  constexpr i64 kDepth = 128;
  for (i64 k = 0; k < depth; k += kDepth)
    product<T>(rows, columns, depth - k < kDepth ? depth - k : kDepth, {a + k, depth, 1}, {b + k * columns, columns},
               {c, columns}, {k > 0 ? c : nullptr, columns});
}

template <class T>
MOP_INLINE T dot(i64 width, const T* a, const T* b) {
  T sum;
  dots<T>(1, 1, 1, width, {a, 0, 0}, {b, 0, 0}, &sum, 1, 1, false);
  return sum;
}

template <class T>
MOP_INLINE T mean_of(i64 width, const T* x) {
  constexpr int W = kLanes<T>;
  Vec<T> lanes = {};
  i64 c = 0;
  for (; c + W <= width; c += W) lanes += load(x + c);
  T sum = sum_lanes<T>(lanes);
  for (; c < width; ++c) sum += x[c];
  return sum / T(width);
}

template <class T>
void prompt_head(const PromptHead<T>& h, i64 first, i64 examples) {
  constexpr T kEps = T(1e-5);
  T *hidden = h.hidden + first * h.rank, *active = h.active + first * h.rank;
  stretched_product(examples, h.rank, h.width, h.peak + first * h.width, h.w_down, hidden);
  activate(Activation::silu, examples * h.rank, hidden, active);
  stretched_product(examples, h.width, h.rank, active, h.w_up, h.normal + first * h.width);
  for (i64 b = first; b < first + examples; ++b) {
    T *normal = h.normal + b * h.width, *query = h.query + b * h.width;
    const T mean = mean_of(h.width, normal);
    for (i64 c = 0; c < h.width; ++c) normal[c] -= mean;
    const T scale = T(1) / root_of(dot(h.width, normal, normal) / T(h.width) + kEps);
    h.scale[b] = scale;
    for (i64 c = 0; c < h.width; ++c) {
      normal[c] *= scale;
      query[c] = normal[c] * h.ln_weight[c] + h.ln_bias[c];
    }
    T* attention = h.attention + b * (h.sources + 1);
    T largest = 0, sum = 0;
    for (i64 j = 0; j <= h.sources; ++j) {
      const T* candidate = j < h.sources ? h.source_peaks + j * h.width : h.target_peaks + h.tasks[b] * h.width;
      attention[j] = dot(h.width, candidate, query) / h.temperature;
      if (j == 0 || attention[j] > largest) largest = attention[j];
    }
    for (i64 j = 0; j <= h.sources; ++j) sum += attention[j] = exp_of(attention[j] - largest);
    for (i64 j = 0; j <= h.sources; ++j) attention[j] /= sum;
  }
}

template <class T>
void prompt_head_backward(const PromptHead<T>& h, const PromptHeadBackward<T>& g, i64 first, i64 examples) {
  const i64 candidates = h.sources + 1;
  for (i64 b = first; b < first + examples; ++b) {
    const T *attention = h.attention + b * candidates, *grad = g.grad_attention + b * candidates;
    T* scores = g.grad_scores + b * candidates;
    T mean = 0;
    for (i64 j = 0; j < candidates; ++j) mean += attention[j] * grad[j];
    for (i64 j = 0; j < candidates; ++j) scores[j] = attention[j] * (grad[j] - mean) / h.temperature;

    T *query = g.grad_query + b * h.width, *up = g.grad_up + b * h.width, *scaled = g.scaled_query + b * h.width;
    const T* normal = h.normal + b * h.width;
    // the gradients of the scores sum to zero: with differences, similar candidates do not cancel into rounding errors
    const T* own = h.target_peaks + h.tasks[b] * h.width;
    for (i64 c = 0; c < h.width; ++c) query[c] = T(0);
    for (i64 j = 0; j < h.sources; ++j)
      for (i64 c = 0; c < h.width; ++c) query[c] += scores[j] * (h.source_peaks[j * h.width + c] - own[c]);
    for (i64 c = 0; c < h.width; ++c) {
      scaled[c] = query[c] * normal[c];
      up[c] = query[c] * h.ln_weight[c];
    }
    const T average = mean_of(h.width, up), along = dot(h.width, up, normal) / T(h.width);
    for (i64 c = 0; c < h.width; ++c) up[c] = h.scale[b] * (up[c] - average - normal[c] * along);
  }
  T* hidden = g.grad_hidden + first * h.rank;
  dots<T>(examples, h.rank, 1, h.width, {g.grad_up + first * h.width, h.width, 0}, {h.w_up, h.width, 0}, hidden, h.rank,
          1, false);
  times_slope(Activation::silu, examples * h.rank, h.hidden + first * h.rank, hidden);
  if (g.grad_peak)
    dots<T>(examples, h.width, 1, h.rank, {hidden, h.rank, 0}, {h.w_down, h.rank, 0}, g.grad_peak + first * h.width,
            h.width, 1, false);
}

template <class T>
void sum_products(i64 depth, i64 first, i64 rows, i64 columns, const T* left, i64 left_row, const T* right, T* to) {
  product<T>(rows, columns, depth, {left + first, 1, left_row}, {right, columns}, {to + first * columns, columns});
}

}  // namespace
