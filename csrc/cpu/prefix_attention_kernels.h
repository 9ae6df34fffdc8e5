// The kernels of prefix_attention: one head of one example, forward and backward.
//
// Letters: i query; c column; e element of a head. The right operand of every product is packed in panels of kPanel
// columns, so that all its rows are neighbours. Tokens that the mask hides are packed as zeros: their numbers, NaN for
// one, do not matter.
#pragma once

#include "dropout_bits.h"
#include "panels.h"
#include "vec_exp.h"

namespace {

using namespace mop;

template <class T>
constexpr T kInfinity = T(__builtin_inf());

MOP_INLINE float log_of(float x) { return __builtin_logf(x); }
MOP_INLINE double log_of(double x) { return __builtin_log(x); }

// The columns of a head: the prefix, then the tokens up to the last real one.
template <class T>
struct Columns {
  const AttentionHead<T>& head;
  AttentionSizes sizes;
  i64 tokens;
  T* hidden;  // [tokens], not 0 where a token is hidden; null if all these tokens are real
  T* zeros;   // a row

  Columns(const AttentionHead<T>& of, Arena<T>& arena)
      : head(of), sizes(attention_sizes<T>(of.prefix + of.tokens, of.width)), tokens(of.tokens), hidden(nullptr) {
    zeros = arena.take(sizes.width);
    for (i64 e = 0; e < sizes.width; ++e) zeros[e] = T(0);
    if (head.real == nullptr) return;
    while (tokens > 0 && !head.real[tokens - 1]) --tokens;
    T* flags = arena.take(tokens);
    for (i64 j = 0; j < tokens; ++j) {
      flags[j] = T(!head.real[j]);
      if (!head.real[j]) hidden = flags;
    }
  }

  // The number of columns up to the last that query i may see, and the number of their groups of dropout bits.
  i64 seen_by(i64 i) const { return head.prefix + (head.causal ? smaller(tokens, i + 1) : tokens); }
  i64 groups_of(i64 i) const { return (seen_by(i) + kDropoutGroup - 1) / kDropoutGroup; }

  auto rows_of(const T* prefix, const T* rows) const {
    return [this, prefix, rows](i64 c) {
      const i64 j = c - head.prefix;
      return j < 0 ? prefix + c * head.width : j < tokens && (!hidden || hidden[j] == 0) ? rows + j * head.row : zeros;
    };
  }
};

// Writes s = s scale + bias, and -inf where a token is hidden. Returns the largest number so far, per lane.
template <class T>
MOP_INLINE Vec<T> finish_scores(i64 count, T scale, const T* bias, const T* hidden, T* s, Vec<T> largest) {
  constexpr int W = kLanes<T>;
  const Vec<T> nothing = Vec<T>{} - kInfinity<T>;
  Lanes<T> lane;
  for (int k = 0; k < W; ++k) lane[k] = k;
  for (i64 c = 0; c < count; c += W) {
    const int some = int(smaller(W, count - c));
    Vec<T> v = load_lanes(s + c, some) * scale;
    if (bias) v += load_lanes(bias + c, some);
    if (hidden) v = load_lanes(hidden + c, some) != T(0) ? nothing : v;
    if (some < W) v = lane < some ? v : nothing;
    store_lanes(s + c, v, some);
    largest = v > largest ? v : largest;  // passes over NaN, whose exp is NaN
  }
  return largest;
}

// Makes the scores of query i from its products with the columns, and -inf from there to a whole group. Returns the
// largest score.
template <class T>
T score_row(const Columns<T>& columns, i64 i, T* s) {
  const AttentionHead<T>& h = columns.head;
  const i64 seen = columns.seen_by(i), end = columns.groups_of(i) * kDropoutGroup;
  const T* bias = h.bias ? h.bias + i * h.tokens : nullptr;
  Vec<T> lanes = Vec<T>{} - kInfinity<T>;
  lanes = finish_scores<T>(h.prefix, h.scale, nullptr, nullptr, s, lanes);
  lanes = finish_scores<T>(seen - h.prefix, h.scale, bias, columns.hidden, s + h.prefix, lanes);
  for (i64 c = seen; c < end; ++c) s[c] = -kInfinity<T>;
  T largest = lanes[0];
  for (int k = 1; k < kLanes<T>; ++k) largest = lanes[k] > largest ? lanes[k] : largest;
  return largest;
}

// Writes s = exp(s - shift), and 0 where an element is dropped and from the groups to column `end`. Returns the sum of
// all exp, dropped or not.
template <class T>
T exp_row(i64 groups, i64 end, T shift, const Dropout& dropout, i64 row, T* s) {
  constexpr int W = kLanes<T>, N = kDropoutGroup / W;
  const DropoutRow keys = dropout_row(dropout.seed, row);
  Vec<T> sum[N] = {};
  for (i64 group = 0; group < groups; ++group) {
    T* at = s + group * kDropoutGroup;
    Lanes<T> keep[N];
    dropout_keep<T>(keys, dropout.threshold, group, keep);
    for (int n = 0; n < N; ++n) {
      const Vec<T> e = exp_lanes<T>(load(at + n * W) - shift);
      sum[n] += e;
      store(at + n * W, dropped<T>(e, keep[n]));
    }
  }
  for (i64 c = groups * kDropoutGroup; c < end; ++c) s[c] = T(0);
  for (int n = 1; n < N; ++n) sum[0] += sum[n];
  return sum_lanes<T>(sum[0]);
}

template <class T>
void attention_forward(const AttentionHead<T>& h, T* out, T* lse, T* scratch) {
  Arena<T> arena{scratch};
  const Columns<T> columns(h, arena);
  const AttentionSizes& n = columns.sizes;
  T *keys = arena.take(h.width * n.columns), *values = arena.take(n.width * n.columns);
  T *scores = arena.take(n.rows * n.stride), *sums = arena.take(n.rows * n.width), *factors = arena.take(n.rows);
  const i64 used = columns.groups_of(h.queries - 1) * kDropoutGroup;
  pack_columns(used, h.width, columns.rows_of(h.prefix_key, h.key), keys);
  pack_rows(used, h.width, n.columns, columns.rows_of(h.prefix_value, h.value), values);
  for (i64 i = 0; i < h.queries; i += n.rows) {
    const i64 rows = smaller(n.rows, h.queries - i), end = columns.groups_of(i + rows - 1) * kDropoutGroup;
    panel_product<T>(rows, end, h.width, {h.query + i * h.row, h.row, 1}, keys, h.width, {scores, n.stride}, false);
    for (i64 r = 0; r < rows; ++r) {
      T* s = scores + r * n.stride;
      const T largest = score_row(columns, i + r, s);
      const T shift = largest == -kInfinity<T> ? T(0) : largest;  // of a row that sees nothing
      const T sum = exp_row(columns.groups_of(i + r), end, shift, h.dropout, h.dropout_row + i + r, s);
      lse[i + r] = shift + log_of(sum);
      factors[r] = sum == T(0) ? T(0) : T(h.dropout.scale) / sum;
    }
    panel_product<T>(rows, h.width, end, {scores, n.stride, 1}, values, n.columns, {sums, n.width}, false);
    for (i64 r = 0; r < rows; ++r) write_scaled(h.width, sums + r * n.width, factors[r], out + (i + r) * h.row);
  }
}

template <class T>
struct RowSums {
  T weights, products;
};

// p: the scores; becomes exp(p - lse), with a minus sign where an element is dropped.
// g: products of the gradient of out with the values; becomes the gradient of the weights. May be null.
// Returns the sums of |p| and of |p| g.
template <class T>
RowSums<T> weigh_row(i64 groups, T lse, const Dropout& dropout, i64 row, T* p, T* g) {
  constexpr int W = kLanes<T>, N = kDropoutGroup / W;
  const DropoutRow keys = dropout_row(dropout.seed, row);
  const Lanes<T> sign = Lanes<T>(-Vec<T>{});
  Vec<T> weights[N] = {}, products[N] = {};
  for (i64 group = 0; group < groups; ++group) {
    Lanes<T> keep[N];
    dropout_keep<T>(keys, dropout.threshold, group, keep);
    for (int n = 0; n < N; ++n) {
      const i64 c = group * kDropoutGroup + n * W;
      const Vec<T> e = exp_lanes<T>(load(p + c) - lse);
      weights[n] += e;
      store(p + c, Vec<T>(Lanes<T>(e) | (sign & ~keep[n])));
      if (g == nullptr) continue;
      const Vec<T> of_e = dropped<T>(load(g + c) * T(dropout.scale), keep[n]);
      products[n] += e * of_e;
      store(g + c, of_e);
    }
  }
  for (int n = 1; n < N; ++n) weights[0] += weights[n], products[0] += products[n];
  return {sum_lanes<T>(weights[0]), sum_lanes<T>(products[0])};
}

// p: becomes the weights, and 0 where an element is dropped. g: becomes the gradient of the scores, weight (g - mean).
// Both become 0 from the groups to column `end`. The sum of |p| is 1 but for the rounding of lse, which grows with the
// scores: a division by the sum makes the weights as exact as a softmax.
template <class T>
void grad_scores(i64 groups, i64 end, RowSums<T> sums, T* p, T* g) {
  constexpr int W = kLanes<T>;
  const T factor = sums.weights == T(0) ? T(0) : T(1) / sums.weights, mean = sums.products * factor;
  for (i64 c = 0; c < groups * kDropoutGroup; c += W) {
    const Vec<T> weight = load(p + c) * factor;
    if (g) store(g + c, (weight < T(0) ? -weight : weight) * (load(g + c) - mean));
    store(p + c, weight < T(0) ? Vec<T>{} : weight);
  }
  for (i64 c = groups * kDropoutGroup; c < end; ++c) p[c] = T(0);
  for (i64 c = groups * kDropoutGroup; g && c < end; ++c) g[c] = T(0);
}

// The gradient of keys or of values: rows of the columns, summed over the blocks of queries in order.
template <class T>
struct ColumnGradient {
  const Columns<T>& columns;
  T *prefix, *tokens;  // null: not asked for
  i64 first, last;     // the columns asked for
  T* sums;             // [columns, width]

  ColumnGradient(const Columns<T>& of, T* to_prefix, T* to_tokens, Arena<T>& arena)
      : columns(of), prefix(to_prefix), tokens(to_tokens) {
    first = prefix ? 0 : of.head.prefix;
    last = of.head.prefix + (tokens ? of.tokens : 0);
    sums = arena.take(of.sizes.columns * of.sizes.width);
    for (i64 k = first * of.sizes.width; k < last * of.sizes.width; ++k) sums[k] = T(0);
  }
  bool asked() const { return prefix || tokens; }

  // Adds left^T right of a block of queries whose last is `i`; left [rows, columns], right in panels.
  void add(i64 rows, i64 i, const T* left, const T* right) {
    const AttentionSizes& n = columns.sizes;
    const i64 count = smaller(columns.seen_by(i), last) - first;
    if (count > 0)
      panel_product<T>(count, columns.head.width, rows, {left + first, 1, n.stride}, right, n.rows,
                       {sums + first * n.width, n.width}, true);
  }
  void write(T factor) const {
    const AttentionHead<T>& h = columns.head;
    for (i64 c = first; c < last; ++c)
      write_scaled(h.width, sums + c * columns.sizes.width, factor,
                   c < h.prefix ? prefix + c * h.width : tokens + (c - h.prefix) * h.row);
    for (i64 j = columns.tokens; tokens && j < h.tokens; ++j)
      write_scaled(h.width, columns.zeros, T(0), tokens + j * h.row);
  }
};

template <class T>
void attention_backward(const AttentionHead<T>& h, const AttentionGradients<T>& g, T* scratch) {
  Arena<T> arena{scratch};
  const Columns<T> columns(h, arena);
  const AttentionSizes& n = columns.sizes;
  ColumnGradient<T> of_keys(columns, g.prefix_key, g.key, arena), of_values(columns, g.prefix_value, g.value, arena);
  const bool through_scores = g.query || of_keys.asked();
  const i64 used = columns.groups_of(h.queries - 1) * kDropoutGroup;
  const auto key_rows = columns.rows_of(h.prefix_key, h.key);
  T *keys = arena.take(h.width * n.columns), *key_panels = arena.take(n.width * n.columns);
  T *values = arena.take(h.width * n.columns), *query_panels = arena.take(n.rows * n.width);
  T *out_panels = arena.take(n.rows * n.width), *sums = arena.take(n.rows * n.width);
  T *weights = arena.take(n.rows * n.stride), *grads = through_scores ? arena.take(n.rows * n.stride) : nullptr;
  pack_columns(used, h.width, key_rows, keys);
  if (g.query) pack_rows(used, h.width, n.columns, key_rows, key_panels);
  if (through_scores) pack_columns(used, h.width, columns.rows_of(h.prefix_value, h.value), values);
  for (i64 i = 0; i < h.queries; i += n.rows) {
    const i64 rows = smaller(n.rows, h.queries - i), last = i + rows - 1, end = columns.groups_of(last) * kDropoutGroup;
    const Matrix<T> query{h.query + i * h.row, h.row, 1}, grad_out{g.out + i * g.out_row, g.out_row, 1};
    panel_product<T>(rows, end, h.width, query, keys, h.width, {weights, n.stride}, false);
    if (through_scores) panel_product<T>(rows, end, h.width, grad_out, values, h.width, {grads, n.stride}, false);
    for (i64 r = 0; r < rows; ++r) {
      T *p = weights + r * n.stride, *of_p = grads ? grads + r * n.stride : nullptr;
      const i64 groups = columns.groups_of(i + r);
      score_row(columns, i + r, p);
      const T lse = g.lse[i + r] == -kInfinity<T> ? kInfinity<T> : g.lse[i + r];  // a row that sees nothing weighs 0
      const RowSums<T> sums_of_row = weigh_row(groups, lse, h.dropout, h.dropout_row + i + r, p, of_p);
      grad_scores(groups, end, sums_of_row, p, of_p);
    }
    if (g.query) {
      panel_product<T>(rows, h.width, end, {grads, n.stride, 1}, key_panels, n.columns, {sums, n.width}, false);
      for (i64 r = 0; r < rows; ++r) write_scaled(h.width, sums + r * n.width, h.scale, g.query + (i + r) * h.row);
    }
    if (of_keys.asked()) {
      pack_rows(rows, h.width, n.rows, [&](i64 r) { return query.data + r * query.row; }, query_panels);
      of_keys.add(rows, last, grads, query_panels);
    }
    if (of_values.asked()) {
      pack_rows(rows, h.width, n.rows, [&](i64 r) { return grad_out.data + r * grad_out.row; }, out_panels);
      of_values.add(rows, last, weights, out_panels);
    }
  }
  if (of_keys.asked()) of_keys.write(h.scale);
  if (of_values.asked()) of_values.write(T(h.dropout.scale));
}

}  // namespace
