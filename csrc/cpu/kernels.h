// The interface of the kernels that every instruction level compiles: functions on plain structs of pointers and sizes.
//
// Letters as in reference.py: n row; i term; r rank; j = (i, r); a, c sides of the rule; u, v sides of the local. The
// intermediates of a block of rows are t[j, n, u] and s[j, n, v]. Stage 2 of a term is therefore one product with
// rank*rows rows, and the rank needs no code of its own. `rule_in` is packed as [j, a] throughout.
#pragma once

#include "../dims.h"
#include "dropout.h"
#include "prefix_attention.h"

namespace mop {

template <class T>
struct Factors {
  const T* rule_in;   // [j, a]
  const T* rule_out;  // [j, c]
  const T* local;     // [i, u, v]
  const T* bias;      // [c, v], or null
};

template <class T>
struct Gradients {  // null: not asked for
  T* rule_in;
  T* rule_out;
  T* local;
  T* bias;
};

template <class T>
struct Rows {  // rows of any strides
  const T* data;
  i64 row, col;
};

// One map on a block of rows.
template <class T>
struct MapForward {
  PhmDims dims;
  Factors<T> factors;
  i64 rows;
  const T* x;  // [rows, in]
  T* y;        // [rows, out]
  bool stream;
};

template <class T>
struct MapBackward {
  PhmDims dims;
  Factors<T> factors;
  i64 rows;
  const T* x;
  Rows<T> grad_y;
  Gradients<T> grads;
  T* grad_x;        // [rows, in], or null
  bool accumulate;  // add to grads (a later block of the same rows); grad_x is always written
};

// A full rule without W, on a block of rows: `columns` columns of y, from `column` on.
template <class T>
struct FullRuleForward {
  PhmDims dims;
  const T *rule, *local, *bias;  // [i, a, c]; [i, u, v]; [c, v] or null
  i64 rows, column, columns;
  const T* x;  // [rows, in]
  T* y;        // [rows, out]
};

// The gradients of one term of a full rule, from a block of rows.
template <class T>
struct FullRuleBackward {
  PhmDims dims;
  const T *rule, *local;  // of this term: [a, c]; [u, v]
  i64 rows;
  const T *x, *grad_y;                 // [rows, in]; [rows, out]
  T *grad_x, *grad_rule, *grad_local;  // this term's part [rows, in]; [a, c]; [u, v]; each may be null
  bool accumulate;                     // add to grad_rule and grad_local; grad_x is always written
};

// y = x (I (x) local) + bias on a block of rows: rows * groups products of a row by the local.
template <class T>
struct LocalForward {
  i64 width_in, width_out, groups, rows;
  i64 fetched;            // rows that are fetched together, before they are read
  const T *local, *bias;  // [width_in, width_out]; [groups, width_out] or null
  const T* x;             // [rows, groups, width_in]
  T* y;                   // [rows, groups, width_out]
  bool stream;
};

template <class T>
struct LocalBackward {
  i64 width_in, width_out, groups, rows;
  i64 fetched;                         // rows of the next block
  const T* transposed;                 // the local, [width_out, width_in]
  const T *x, *grad_y;                 // [rows, groups, width_in]; [rows, groups, width_out]
  T *grad_x, *grad_local, *grad_bias;  // each may be null; grad_local has its wider side last
  bool accumulate;                     // add to grad_local and grad_bias
  bool stream;
};

// The whole generator of one (layer, expert) pair on a block of rows.
template <class T>
struct PairForward {
  PhmDims down_dims, up_dims;
  Activation activation;
  Factors<T> down;
  const Factors<T>* ups;
  int maps;
  i64 rows;
  const T* t;   // stage 1 of the down map, [j, rows, u]
  T* const* y;  // per map: [rows, out]
  bool stream;
};

template <class T>
struct PairBackward {
  PhmDims down_dims, up_dims;
  Activation activation;
  Factors<T> down;
  const Factors<T>* ups;
  int maps;
  i64 rows;
  const T* t;
  const Rows<T>* grad_y;  // per map
  Gradients<T> down_grads;
  const Gradients<T>* up_grads;
  T* down_grad_s;  // out: gradient of s of the down map, [j, rows, v], or null if nothing before it asks
  bool accumulate;
};

// One term of the down map for one group of pairs that share x and rule_in.
template <class T>
struct DownTail {
  PhmDims dims;
  i64 term, rows, block_rows;
  const T* const* grad_s;  // per pair: blocks of [j, rows of the block, v], one after another
  const T* const* local;   // per pair
  i64 pairs;
  const T* x;  // [rows, in]
  T* grad_t;   // blocks of [j, rows of the block, u]
  T* rule_in;  // gradient [j, a], or null
};

// attempt_mix: b example; j source prompt, or last the candidate of the target; m rows of a prompt; d columns.

// The largest number of each column and its row. Of equal numbers the first counts; NaN is the largest. 0 and row -1
// where no row counts.
template <class T>
struct Pool {
  i64 rows, columns, row;  // row: stride of the rows of x and of y
  const T* x;
  const unsigned char* keep;  // [rows], or null: all count
  T* y;                       // a copy of x, or null
  T* peak;                    // [columns]
  int32_t* position;
  bool stream;
};

template <class T>
struct Prompts {
  i64 examples, sources, size;  // size: m*d
  const T *source, *target;     // [j, size]; [task, size]
  const i64* tasks;             // [b]
  const T* attention;           // [b, j]
};

// `columns` of the [0, size) of the prompts of all examples, from `column` on.
template <class T>
struct PromptMix {
  Prompts<T> prompts;
  i64 column, columns, row;  // row: stride of the examples of y
  T* y;
  bool stream;
};

// The gradients of the prompts through the mix, and the part of the attention's gradient from these columns.
template <class T>
struct PromptMixBackward {
  Prompts<T> prompts;
  i64 column, columns, row, tasks;
  const T* grad;
  T *attention, *source,
      *target;  // [b, j], the part of these columns; [j, size]; [task, size]; the last two may be null
};

// The attention, from the largest numbers of the embeddings.
template <class T>
struct PromptHead {
  i64 sources, width, rank;
  const T *w_down, *w_up, *ln_weight, *ln_bias;
  const T *source_peaks, *target_peaks;  // [j, d]; [task, d]
  const i64* tasks;
  T temperature;
  const T* peak;                                            // [b, d]
  T *hidden, *active, *normal, *scale, *query, *attention;  // made: [b, r] x 2; [b, d]; [b]; [b, d]; [b, j]
};

template <class T>
struct PromptHeadBackward {
  const T* grad_attention;                                                         // [b, j]
  T *grad_scores, *grad_query, *scaled_query, *grad_up, *grad_hidden, *grad_peak;  // made; the last may be null
};

// The row-wise operations, on the rows from `first` on. Their pointers point to the first row of the block.
struct RowBlock {
  i64 first, rows, width;
};

template <class T>
struct RmsNorm {
  RowBlock block;
  double eps;
  const T *x, *weight;
  T* y;
};

template <class T>
struct RmsNormBackward {
  RowBlock block;
  double eps;
  const T *grad, *x, *weight;
  T *grad_x, *grad_weight;  // [rows, width]; [width], the part of these rows; each may be null
};

template <class T>
struct DropoutAdd {
  RowBlock block;
  Dropout dropout;
  const T *x, *residual;  // residual: or null
  T* y;
};

template <class T>
struct ReluDropout {
  RowBlock block;
  Dropout dropout;
  const T* x;
  T* y;
  unsigned char* bits;  // [rows, ceil(width / 8)]; bit c % 8 of byte c / 8: column c is positive and kept
};

template <class T>
struct ReluDropoutBackward {
  RowBlock block;
  double scale;
  const T* grad;
  const unsigned char* bits;
  T* grad_x;
};

template <class T>
struct GatedGeluDropout {
  RowBlock block;
  Dropout dropout;
  const T *gate, *x;
  T* y;
};

template <class T>
struct GatedGeluDropoutBackward {
  RowBlock block;
  Dropout dropout;
  const T *grad, *gate, *x;
  T *grad_gate, *grad_x;  // each may be null
};

template <class T>
struct Kernels {
  void (*stage1)(const PhmDims&, const T* rule_in, i64 rows, const T* x, T* t);
  void (*map_forward)(const MapForward<T>&, T* scratch);
  void (*map_backward)(const MapBackward<T>&, T* scratch);
  void (*pair_forward)(const PairForward<T>&, T* scratch);
  void (*pair_backward)(const PairBackward<T>&, T* scratch);
  void (*down_tail)(const DownTail<T>&, T* scratch);
  void (*grad_x)(const PhmDims&, const T* rule_in, i64 rows, const T* grad_t, T* grad_x);
  void (*local_first)(const FullRuleForward<T>&, T* scratch);
  void (*rule_first)(const FullRuleForward<T>&, T* scratch);
  void (*rule_first_backward)(const FullRuleBackward<T>&, T* scratch);
  void (*local_forward)(const LocalForward<T>&);
  void (*local_backward)(const LocalBackward<T>&);
  void (*weight_rows)(const PhmDims&, i64 a, const T* rule, const T* local, T* weight);
  void (*weight_grad_rule)(const PhmDims&, i64 a, const T* grad, const T* local, T* rule);
  void (*weight_grad_local)(const PhmDims&, i64 u, const T* grad, const T* rule, T* local);
  void (*pool)(const Pool<T>&, T* scratch);
  void (*prompt_mix)(const PromptMix<T>&);
  void (*prompt_mix_backward)(const PromptMixBackward<T>&);
  void (*prompt_head)(const PromptHead<T>&, i64 first, i64 examples);
  void (*prompt_head_backward)(const PromptHead<T>&, const PromptHeadBackward<T>&, i64 first, i64 examples);
  // to[m, n] = sum over b of left[b, m] right[b, n]; the rows m of `to` that start at `first`
  void (*sum_products)(i64 depth, i64 first, i64 rows, i64 columns, const T* left, i64 left_row, const T* right, T* to);
  void (*sum_rows)(i64 rows, i64 width, const T* from, i64 row, T* to);  // to[w] = sum over rows, in order
  void (*attention_forward)(const AttentionHead<T>&, T* out, T* lse, T* scratch);
  void (*attention_backward)(const AttentionHead<T>&, const AttentionGradients<T>&, T* scratch);
  void (*rms_norm)(const RmsNorm<T>&);
  void (*rms_norm_backward)(const RmsNormBackward<T>&);
  void (*dropout_add)(const DropoutAdd<T>&);
  void (*relu_dropout)(const ReluDropout<T>&);
  void (*relu_dropout_backward)(const ReluDropoutBackward<T>&);
  void (*gated_gelu_dropout)(const GatedGeluDropout<T>&);
  void (*gated_gelu_dropout_backward)(const GatedGeluDropoutBackward<T>&);
  // raises peak to the largest of the logits, makes them exp(logit - peak), and adds their sum to `total`; returns the
  // factor exp(old peak - peak) of what was summed before
  T (*softmax_piece)(i64 classes, T* logits, T* peak, T* total);
};

// Scratch of a unit in elements, an upper bound: each buffer is rounded up to whole lines.
inline i64 line(i64 elements) { return (elements + 31) / 32 * 32; }
inline i64 map_forward_scratch(const PhmDims& d, i64 rows) {
  return line(d.j() * rows * d.loc_in) + line(d.j() * rows * d.loc_out);
}
inline i64 map_backward_scratch(const PhmDims& d, i64 rows) {
  return 2 * map_forward_scratch(d, rows) + line(d.loc_in * d.loc_out) + line(rows * d.out());
}
inline i64 full_rule_scratch(const PhmDims& d, i64 rows, i64 columns) {
  const i64 local_first = d.g_in * columns, rule_first = d.g_out * d.loc_in;
  return line(d.terms * rows * (local_first > rule_first ? local_first : rule_first));
}
inline i64 full_rule_backward_scratch(const PhmDims& d, i64 rows) {
  return 2 * line(rows * d.g_out * d.loc_in) + line(d.loc_in * d.loc_out);
}
inline i64 pair_forward_scratch(const PhmDims& down, const PhmDims& up, i64 rows) {
  return line(down.j() * rows * down.loc_out) + line(rows * down.out()) + map_forward_scratch(up, rows);
}
inline i64 pair_backward_scratch(const PhmDims& down, const PhmDims& up, i64 rows) {
  return 2 * line(down.j() * rows * down.loc_out) + 4 * line(rows * down.out()) + map_backward_scratch(up, rows);
}
inline i64 pool_scratch(i64 columns) { return 2 * line(columns); }
template <class T>
i64 attention_scratch(i64 columns, i64 width, bool backward) {
  const AttentionSizes n = attention_sizes<T>(columns, width);
  const i64 packed = line(n.columns * n.width), block = line(n.rows * n.width), scores = line(n.rows * n.stride);
  const i64 both = line(n.width) + line(columns) + 2 * packed + scores + block + line(n.rows);
  return backward ? both + 3 * packed + scores + 2 * block : both;
}
inline i64 down_tail_scratch(const PhmDims& d) { return line(d.loc_in * d.loc_out); }

template <class T>
const Kernels<T>& kernels();  // of the best level that this machine runs
const char* level_name();

}  // namespace mop
