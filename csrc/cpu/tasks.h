// What the operations on the CPU share: tasks over threads, scratch of a thread, sums of parts.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "../tensors.h"
#include "kernels.h"

namespace mop {

template <class Function>
auto by_dtype(const Tensor& t, const Function& function) {
  return by_dtype_among<float, double>(t, function);
}

// Returns the gradient of a packed rule_in in the form of rule_in, (..., terms, g_in, rank). Where a side is 1, the
// transpose counts as contiguous with any strides, and DistributedDataParallel warns if these are not the strides of
// the parameter.
inline Tensor swapped_sides(const Tensor& t) {
  std::vector<i64> sizes(t.sizes().begin(), t.sizes().end());
  std::swap(sizes[sizes.size() - 1], sizes[sizes.size() - 2]);
  const i64 width = sizes[sizes.size() - 2], height = sizes[sizes.size() - 1];
  if (width == 1 || height == 1) return viewed(t, sizes);
  const Tensor swapped = empty(t, sizes);
  by_dtype(t, [&](auto zero) {
    using T = decltype(zero);
    const T* from = in<T>(t);
    T* to = out<T>(swapped);
    for (const T* const end = from + t.numel(); from < end; from += height * width, to += height * width)
      for (i64 a = 0; a < height; ++a)
        for (i64 b = 0; b < width; ++b) to[b * height + a] = from[a * width + b];
  });
  return swapped;
}

// Returns rule_in (..., terms, g_in, rank) as the kernels read it, (..., terms, rank, g_in). Rank 1 needs no copy.
inline Tensor packed_rule_in(const Tensor& t) { return t.size(t.dim() - 1) == 1 ? t : swapped_sides(t); }

// Calls body(task) for every task, in no order, on torch's threads. A task must own the memory that it writes, and may
// depend only on its number. Then results are bit-equal for any number of threads. One counter instead of fixed ranges
// keeps all cores at work when one is disturbed.
template <class Body>
void for_each_task(i64 tasks, const Body& body) {
  if (tasks <= 0) return;
  std::atomic<i64> next{0};
  const auto run = [&](i64, i64) {
    for (i64 task; (task = next.fetch_add(1)) < tasks;) body(task);
  };
  const i64 threads = std::min<i64>(torch::stable::get_num_threads(), tasks);
  if (threads == 1)
    run(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, run);
}

// Returns scratch of the calling thread. It grows, is never freed, and starts at a whole line. It may hold old numbers,
// so units must write before they read.
template <class T>
T* thread_scratch(i64 elements) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local std::size_t capacity = 0;
  const std::size_t bytes = std::size_t(elements) * sizeof(T);
  if (bytes > capacity) {
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.reset();
    capacity = 0;
    buffer.reset(std::aligned_alloc(64, rounded));
    MOP_GUARD(buffer != nullptr);
    capacity = rounded;
  }
  return static_cast<T*>(buffer.get());
}

// Returns the rows of a block: as many as keep its scratch in the L2 cache, evenly split. At least `least` rows, so
// that a deep product has enough rows to pay for the copy of its operand (tiles.h), even if no block fits.
inline i64 block_rows(i64 rows, i64 bytes_a_row, i64 least) {
  constexpr i64 kCache = 384 * 1024;
  const i64 fit = std::max(least, kCache / std::max<i64>(1, bytes_a_row));
  const i64 blocks = std::max<i64>(1, (rows + fit - 1) / fit);
  return std::max<i64>(1, (rows + blocks - 1) / blocks);
}

// Returns whether stores to y bypass the caches: y, of `elements`, is far larger than they are, and every run of
// `width` elements is whole 64-byte lines.
template <class T>
bool streams(const T* y, i64 width, i64 elements) {
  constexpr i64 kLarge = 4 * 1024 * 1024, kLine = 64;
  const bool whole_lines = width * sizeof(T) % kLine == 0 && reinterpret_cast<uintptr_t>(y) % kLine == 0;
  return whole_lines && elements * i64(sizeof(T)) >= kLarge;
}

// Writes to[k] = sum over n of from[n, k], in order, for n < rows and k < width.
template <class T>
void sum_columns(i64 rows, i64 width, const T* from, T* to) {
  constexpr i64 kColumns = 512;
  for_each_task((width + kColumns - 1) / kColumns, [&](i64 task) {
    const i64 at = task * kColumns;
    kernels<T>().sum_rows(rows, std::min(kColumns, width - at), from + at, width, to + at);
  });
}

inline Tensor column_sums(const Tensor& rows) {
  const Tensor sums = empty(rows, {rows.size(1)});
  by_dtype(rows, [&](auto zero) {
    using T = decltype(zero);
    sum_columns(rows.size(0), rows.size(1), in<T>(rows), out<T>(sums));
  });
  return sums;
}

// A gradient that tasks write in parts, which are summed in order. One part is the gradient itself.
class SumOfParts {
 public:
  // Without `is_asked` nothing is allocated, and there are no places.
  SumOfParts(bool is_asked, const Tensor& like, i64 count, Sizes sizes) : is_asked_(is_asked), count_(count) {
    if (!is_asked) return;
    sum_ = empty(like, sizes);
    parts_ = count == 1 ? sum_ : empty(like, {count, sum_.numel()});
  }

  // Returns the place of element `offset` of part k, or null.
  template <class T>
  T* at(i64 k, i64 offset = 0) const {
    return is_asked_ ? out<T>(parts_) + k * sum_.numel() + offset : nullptr;
  }

  // Sums the parts, and adds the gradient to those that were asked for.
  void finish(std::vector<Tensor>& asked) const {
    if (!is_asked_) return;
    if (count_ != 1)
      by_dtype(parts_, [&](auto zero) {
        using T = decltype(zero);
        sum_columns(count_, sum_.numel(), in<T>(parts_), out<T>(sum_));
      });
    asked.push_back(sum_);
  }

 private:
  bool is_asked_;
  i64 count_;
  Tensor sum_, parts_;
};

}  // namespace mop
