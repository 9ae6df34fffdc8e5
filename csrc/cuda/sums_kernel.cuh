// Sums in a fixed order: to[g, q, e] = sum of from[g, p, e] over the p of chunk q.
#pragma once

#include "device.h"

namespace mop {

// The threads of a block: `lanes` threads share the sum of one pack of elements.
struct SumShape {
  int positions, lanes;
};

MOP_BOTH SumShape sum_shape(int threads) {
  const int positions = threads >= 8 ? threads / 8 : 1;
  return {positions, threads / positions};
}

template <class In, class Out>
struct Sum {
  const In* from;  // [groups, parts, size]
  Out* to;         // [groups, chunks, size]
  i64 groups, parts, chunk_parts, chunks, size;
};

// kWidth elements per thread: one, or a pack of In. Grid: positions fastest, then chunks, groups. Shared memory:
// threads * kWidth floats.
template <int kWidth, class In, class Out>
MOP_KERNEL sum_kernel(Sum<In, Out> p) {
  const SumShape shape = sum_shape(block_threads());
  const int position = thread_index() % shape.positions, lane = thread_index() / shape.positions;
  const i64 across = div_up(p.size, i64(shape.positions) * kWidth);
  const i64 element = (block_index() % across * shape.positions + position) * kWidth;
  const i64 chunk = block_index() / across % p.chunks, group = block_index() / across / p.chunks;
  const i64 begin = chunk * p.chunk_parts, end = least(p.parts, begin + p.chunk_parts);
  const bool valid = element < p.size;

  float sums[kWidth] = {};
  if (valid)
    for (i64 part = begin + lane; part < end; part += shape.lanes) {
      const In* const at = p.from + (group * p.parts + part) * p.size + element;
      if constexpr (kWidth == 1) {
        sums[0] += to_float(*at);
      } else {
        const Pack<In> pack = load16(at);
        MOP_UNROLL
        for (int e = 0; e < kWidth; ++e) sums[e] += to_float(pack.at[e]);
      }
    }
  float* const shared = shared_memory<float>();
  MOP_UNROLL
  for (int e = 0; e < kWidth; ++e) shared[thread_index() * kWidth + e] = sums[e];
  sync_threads();
  // the lanes of an element in order, one element per thread
  for (int k = thread_index(); k < shape.positions * kWidth; k += block_threads()) {
    const i64 to = block_index() % across * shape.positions * kWidth + k;
    if (to >= p.size) continue;
    float sum = 0.f;
    for (int other = 0; other < shape.lanes; ++other) sum += shared[other * shape.positions * kWidth + k];
    p.to[(group * p.chunks + chunk) * p.size + to] = from_float<Out>(sum);
  }
}

}  // namespace mop
