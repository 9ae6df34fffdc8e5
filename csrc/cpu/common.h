// What the op files share: typed pointers, tasks over threads, scratch of a thread.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "../guards.h"
#include "kernels.h"

namespace mop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* in(const Tensor& t) {
  MOP_GUARD(t.is_cpu() && t.is_contiguous());
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
const T* in(const std::optional<Tensor>& t) {
  return t ? in<T>(*t) : nullptr;
}

template <class T>
T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline Tensor empty(const Tensor& like, std::initializer_list<i64> sizes) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()));
}

// The gradient of a packed rule_in as rule_in itself is, (..., terms, g_in, rank). Where a side is 1 the transpose
// counts as contiguous whatever its strides are, and DistributedDataParallel warns of other strides than the
// parameter's.
inline Tensor swapped_sides(const Tensor& t) {
  std::vector<i64> sizes(t.sizes().begin(), t.sizes().end());
  std::swap(sizes[sizes.size() - 1], sizes[sizes.size() - 2]);
  if (sizes[sizes.size() - 1] == 1 || sizes[sizes.size() - 2] == 1) return torch::stable::view(t, sizes);
  return torch::stable::contiguous(torch::stable::transpose(t, -2, -1));
}

// rule_in (..., terms, g_in, rank) as the kernels read it, (..., terms, rank, g_in). Rank 1 is the same memory.
inline Tensor packed_rule_in(const Tensor& t) { return t.size(t.dim() - 1) == 1 ? t : swapped_sides(t); }

// Calls body(task) for every task, in no order, on torch's threads. A task must own what it writes and may depend on
// nothing but its number: then results are bit-equal for any number of threads. One counter instead of fixed ranges
// keeps both cores at work where one is disturbed.
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

// Scratch of the calling thread: grows, is never given back, starts at a whole line. Poisoned where it is fresh memory
// only by chance, so units must write before they read.
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

// Rows of a block: so many that its scratch stays in the L2 cache, evenly split; at least `least`, so that a deep
// product has rows enough to pay for copying its operand (tiles.h) even where no block fits.
inline i64 block_rows(i64 rows, i64 bytes_a_row, i64 least) {
  constexpr i64 kCache = 384 * 1024;
  const i64 fit = std::max(least, kCache / std::max<i64>(1, bytes_a_row));
  const i64 blocks = std::max<i64>(1, (rows + fit - 1) / fit);
  return std::max<i64>(1, (rows + blocks - 1) / blocks);
}

// Output past the caches where it is far larger than they are and every row of a block is whole 64-byte lines.
template <class T>
bool streams(const PhmDims& d, i64 rows, const T* y) {
  constexpr i64 kLarge = 4 * 1024 * 1024, kLine = 64;
  const bool whole_lines = d.loc_out * sizeof(T) % kLine == 0 && reinterpret_cast<std::uintptr_t>(y) % kLine == 0;
  return whole_lines && rows * d.out() * i64(sizeof(T)) >= kLarge;
}

template <class Function>
auto by_dtype(const Tensor& t, const Function& function) {
  if (t.scalar_type() == ScalarType::Float) return function(float{});
  MOP_GUARD(t.scalar_type() == ScalarType::Double);
  return function(double{});
}

// to[g] = sum over k of from[g, k], in order; from has `parts` arrays of `size` a group.
template <class T>
void sum_parts(i64 groups, i64 parts, i64 size, const T* from, T* to) {
  constexpr i64 kChunk = 4096;
  const i64 chunks = (size + kChunk - 1) / kChunk;
  for_each_task(groups * chunks, [&](i64 task) {
    const i64 group = task / chunks, at = task % chunks * kChunk;
    kernels<T>().sum_rows(parts, std::min(kChunk, size - at), from + group * parts * size + at, size,
                          to + group * size + at);
  });
}

}  // namespace mop
