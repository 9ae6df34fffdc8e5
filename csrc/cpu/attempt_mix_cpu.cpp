// attempt_mix: ATTEMPT's instance prompts in front of the embeddings.
//
// Forward has three kinds of tasks. One task per example and stretch of columns copies x and takes its maximum. One
// task per block of examples computes their attention. One task per stretch of columns mixes the prompts for all
// examples. Backward recomputes the attention, reads the gradient of the prompts once for all gradients of the mix,
// then differentiates the attention. Sums over examples and over stretches are in order.
#include <cstring>

#include "cpu_ops.h"

namespace mop {
namespace {

constexpr i64 kColumns = 512;  // of a stretch: twelve prompts of so many float32 fit half an L1 cache
constexpr i64 kExamples = 8;   // of a block: see attempt_mix_kernels.h

i64 stretches(i64 columns) { return (columns + kColumns - 1) / kColumns; }
i64 blocks(i64 examples) { return (examples + kExamples - 1) / kExamples; }

template <class T>
bool streams_rows(const Tensor& y) {
  return streams(out<T>(y), y.size(2), y.numel());
}

struct Peaks {
  Tensor value, position;
};

// Returns the peaks of groups (g, n, d). Copies x to y (g, ., d), if there is a y, behind `before` rows of each group.
template <class T>
Peaks pool_of(const Tensor& x, const std::optional<Tensor>& keep, const std::optional<Tensor>& y, i64 before) {
  const i64 groups = x.size(0), rows = x.size(1), width = x.size(2), across = stretches(width);
  Peaks peaks{empty(x, {groups, width}), empty(x, {groups, width}, ScalarType::Int)};
  MOP_GUARD(!keep || keep->numel() == groups * rows);
  const T* from = in<T>(x);
  const unsigned char* kept = in<unsigned char>(keep);
  T* to = y ? out<T>(*y) : nullptr;
  const bool streamed = y && streams_rows<T>(*y);
  T* values = out<T>(peaks.value);
  int32_t* places = out<int32_t>(peaks.position);
  for_each_task(groups * across, [&](i64 task) {
    const i64 group = task / across, column = task % across * kColumns, columns = std::min(kColumns, width - column);
    const Pool<T> unit{rows,
                       columns,
                       width,
                       from + group * rows * width + column,
                       kept ? kept + group * rows : nullptr,
                       to ? to + (group * (before + rows) + before) * width + column : nullptr,
                       values + group * width + column,
                       places + group * width + column,
                       streamed};
    kernels<T>().pool(unit, thread_scratch<T>(pool_scratch(columns)));
  });
  return peaks;
}

// The tensors that forward and backward share, and the tensors that lead from them to the attention.
struct Call {
  Tensor peak, source, target, task_ids, w_down, w_up, ln_weight, ln_bias;
  double temperature;
  Peaks of_source, of_target;
  Tensor hidden, active, normal, scale, query, attention;

  i64 examples() const { return peak.size(0); }
  i64 sources() const { return source.size(0); }
  i64 width() const { return source.size(2); }
  i64 rank() const { return w_down.size(1); }
  i64 size() const { return source.size(1) * source.size(2); }

  void check() const {
    MOP_GUARD(source.dim() == 3 && target.dim() == 3 && target.size(1) == source.size(1) && target.size(2) == width());
    MOP_GUARD(peak.size(1) == width() && task_ids.numel() == examples());
    MOP_GUARD(w_down.numel() == width() * rank() && w_up.numel() == rank() * width());
    MOP_GUARD(ln_weight.numel() == width() && ln_bias.numel() == width());
    const i64* ids = in<i64>(task_ids);
    for (i64 b = 0; b < examples(); ++b) MOP_GUARD(0 <= ids[b] && ids[b] < target.size(0));
  }

  template <class T>
  Prompts<T> prompts() const {
    return {examples(), sources(), size(), in<T>(source), in<T>(target), in<i64>(task_ids), in<T>(attention)};
  }
  template <class T>
  PromptHead<T> head() const {
    return {sources(),
            width(),
            rank(),
            in<T>(w_down),
            in<T>(w_up),
            in<T>(ln_weight),
            in<T>(ln_bias),
            in<T>(of_source.value),
            in<T>(of_target.value),
            in<i64>(task_ids),
            T(temperature),
            in<T>(peak),
            out<T>(hidden),
            out<T>(active),
            out<T>(normal),
            out<T>(scale),
            out<T>(query),
            out<T>(attention)};
  }
};

template <class T>
void attend(Call& call) {
  const i64 b = call.examples(), d = call.width(), r = call.rank();
  call.check();
  call.of_source = pool_of<T>(call.source, std::nullopt, std::nullopt, 0);
  call.of_target = pool_of<T>(call.target, std::nullopt, std::nullopt, 0);
  for (Tensor* rows : {&call.hidden, &call.active}) *rows = empty(call.peak, {b, r});
  for (Tensor* rows : {&call.normal, &call.query}) *rows = empty(call.peak, {b, d});
  call.scale = empty(call.peak, {b});
  call.attention = empty(call.peak, {b, call.sources() + 1});
  const PromptHead<T> head = call.head<T>();
  for_each_task(blocks(b), [&](i64 task) {
    const i64 first = task * kExamples;
    kernels<T>().prompt_head(head, first, std::min(kExamples, b - first));
  });
}

// to[b or task, position, c] += from[., c], one number per column
template <class T>
void add_at(i64 width, const int32_t* position, const T* from, T* to) {
  for (i64 c = 0; c < width; ++c)
    if (position[c] >= 0) to[position[c] * width + c] += from[c];
}

template <class T>
Tensor sums_over_examples(const Tensor& left, i64 left_row, i64 rows, const Tensor& right) {
  const i64 depth = right.size(0), columns = right.size(1);
  Tensor sums = empty(right, {rows, columns});
  const T *a = in<T>(left), *b = in<T>(right);
  T* to = out<T>(sums);
  constexpr i64 kRows = 16;
  for_each_task((rows + kRows - 1) / kRows, [&](i64 task) {
    const i64 first = task * kRows;
    kernels<T>().sum_products(depth, first, std::min(kRows, rows - first), columns, a, left_row, b, to);
  });
  return sums;
}

template <class T>
Tensor grad_of_x(const Tensor& grad, i64 before, const Tensor& grad_peak, const Tensor& position) {
  const i64 b = grad.size(0), rows = grad.size(1) - before, width = grad.size(2);
  Tensor grad_x = empty(grad, {b, rows, width});
  const T *from = in<T>(grad), *more = in<T>(grad_peak);
  const int32_t* places = in<int32_t>(position);
  T* to = out<T>(grad_x);
  for_each_task(b, [&](i64 k) {
    T* at = to + k * rows * width;
    if (rows > 0) std::memcpy(at, from + (k * (before + rows) + before) * width, rows * width * sizeof(T));
    add_at(width, places + k * width, more + k * width, at);
  });
  return grad_x;
}

template <class T>
std::vector<Tensor> backward(Call& call, const Tensor& grad, const Tensor& grad_attention, const Tensor& position,
                             i64 mask) {
  attend<T>(call);
  const i64 b = call.examples(), t = call.sources(), d = call.width(), r = call.rank(), tasks = call.target.size(0);
  const Prompts<T> prompts = call.prompts<T>();
  std::optional<Tensor> grad_source, grad_target;
  if (mask & 2) grad_source = empty_as(call.source);
  if (mask & 4) grad_target = empty_as(call.target);

  // the gradients of the attention: one part per stretch of columns, and last the gradient from the caller
  const i64 parts = stretches(call.size()), entries = b * (t + 1);
  const Tensor from_columns = empty(grad, {parts + 1, entries});
  T* part = out<T>(from_columns);
  const T *grads = in<T>(grad), *given = in<T>(grad_attention);
  std::copy_n(given, entries, part + parts * entries);
  T *to_source = grad_source ? out<T>(*grad_source) : nullptr,
    *to_target = grad_target ? out<T>(*grad_target) : nullptr;
  for_each_task(parts, [&](i64 k) {
    const i64 column = k * kColumns;
    kernels<T>().prompt_mix_backward({prompts, column, std::min(kColumns, call.size() - column), grad.size(1) * d,
                                      tasks, grads, part + k * entries, to_source, to_target});
  });
  const Tensor total = empty(grad, {b, t + 1});
  sum_columns(parts + 1, entries, part, out<T>(total));

  const Tensor scores = empty(grad, {b, t + 1}), query = empty(grad, {b, d}), scaled = empty(grad, {b, d}),
               up = empty(grad, {b, d}), hidden = empty(grad, {b, r}), of_peak = empty(grad, {b, d});
  const PromptHead<T> head = call.head<T>();
  const PromptHeadBackward<T> head_backward{in<T>(total),
                                            out<T>(scores),
                                            out<T>(query),
                                            out<T>(scaled),
                                            out<T>(up),
                                            out<T>(hidden),
                                            mask & 1 ? out<T>(of_peak) : nullptr};
  for_each_task(blocks(b), [&](i64 task) {
    const i64 first = task * kExamples;
    kernels<T>().prompt_head_backward(head, head_backward, first, std::min(kExamples, b - first));
  });

  if (grad_source) {  // the part that comes through the pool
    const Tensor peaks = sums_over_examples<T>(scores, t + 1, t, call.query);
    for (i64 j = 0; j < t; ++j)
      add_at(d, in<int32_t>(call.of_source.position) + j * d, in<T>(peaks) + j * d, to_source + j * call.size());
  }
  if (grad_target) {
    const T *queries = in<T>(call.query), *of_scores = in<T>(scores);
    const i64* ids = in<i64>(call.task_ids);
    T* peaks = thread_scratch<T>(tasks * d);
    std::fill_n(peaks, tasks * d, T(0));
    for (i64 k = 0; k < b; ++k)
      for (i64 c = 0; c < d; ++c) peaks[ids[k] * d + c] += of_scores[k * (t + 1) + t] * queries[k * d + c];
    for (i64 task = 0; task < tasks; ++task)
      add_at(d, in<int32_t>(call.of_target.position) + task * d, peaks + task * d, to_target + task * call.size());
  }

  std::vector<Tensor> asked;
  if (mask & 1) asked.push_back(grad_of_x<T>(grad, call.source.size(1), of_peak, position));
  if (grad_source) asked.push_back(*grad_source);
  if (grad_target) asked.push_back(*grad_target);
  if (mask & 8) asked.push_back(sums_over_examples<T>(call.peak, d, d, hidden));
  if (mask & 16) asked.push_back(sums_over_examples<T>(call.active, r, r, up));
  if (mask & 32) asked.push_back(column_sums(scaled));
  if (mask & 64) asked.push_back(column_sums(query));
  return asked;
}

}  // namespace

std::vector<Tensor> attempt_mix(Tensor x, std::optional<Tensor> keep, Tensor source, Tensor target, Tensor task_ids,
                                Tensor w_down, Tensor w_up, Tensor ln_weight, Tensor ln_bias, double temperature) {
  MOP_GUARD(x.dim() == 3 && source.dim() == 3 && x.size(2) == source.size(2));
  const i64 before = source.size(1), d = x.size(2);
  const Tensor prefixed = empty(x, {x.size(0), before + x.size(1), d});
  return by_dtype(x, [&](auto zero) -> std::vector<Tensor> {
    using T = decltype(zero);
    Peaks peaks = pool_of<T>(x, keep, prefixed, before);
    Call call{peaks.value, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature,
              {},          {},     {},     {},       {},     {},   {},        {}};
    attend<T>(call);
    const Prompts<T> prompts = call.prompts<T>();
    T* to = out<T>(prefixed);
    const bool streamed = streams_rows<T>(prefixed);
    for_each_task(stretches(call.size()), [&](i64 k) {
      const i64 column = k * kColumns, columns = std::min(kColumns, call.size() - column);
      kernels<T>().prompt_mix({prompts, column, columns, prefixed.size(1) * d, to, streamed});
    });
    return {prefixed, call.attention, peaks.value, peaks.position};
  });
}

std::vector<Tensor> attempt_mix_backward(Tensor grad_prefixed, Tensor grad_attention, Tensor peak, Tensor position,
                                         Tensor source, Tensor target, Tensor task_ids, Tensor w_down, Tensor w_up,
                                         Tensor ln_weight, Tensor ln_bias, double temperature, i64 mask) {
  MOP_GUARD(grad_prefixed.dim() == 3 && grad_prefixed.size(1) >= source.size(1) && position.numel() == peak.numel());
  MOP_GUARD(grad_prefixed.size(0) == peak.size(0) && grad_prefixed.size(2) == source.size(2));
  MOP_GUARD(grad_attention.numel() == peak.size(0) * (source.size(0) + 1));
  const Tensor grad = as_contiguous(grad_prefixed), more = as_contiguous(grad_attention);
  return by_dtype(grad, [&](auto zero) {
    using T = decltype(zero);
    Call call{peak, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature,
              {},   {},     {},     {},       {},     {},   {},        {}};
    return backward<T>(call, grad, more, position, mask);
  });
}

}  // namespace mop
