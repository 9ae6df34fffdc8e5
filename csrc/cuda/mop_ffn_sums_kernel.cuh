// mop_ffn backward, second launch: sums the parts of the gradients, in order, into the groups and the dtype of their
// tensors, and writes zeros for the experts that were not asked for.
//
// Reads every part once and writes every gradient once. Bytes decide its time: 29 MB read and 8 MB written for the
// paper's bank in float32 with four parts per pair, an estimated 9 us on an H200 (not measured).
#pragma once

#include "mop_ffn_backward_kernel.cuh"

namespace mop::ffn {

constexpr int kMaxTotals = 64;  // the bits of the op's mask

template <class T>
struct Total {
  const float* parts;  // [layers, places, parts per pair, size]
  T* result;
  i64 size, first_block;  // of a group; of the blocks that work on it
  int parts_a_pair;
  short lanes;           // threads that share a sum
  bool layers, experts;  // the group dims that the tensor has in full
  bool own;              // the blocks wrote it themselves: only zeros of experts not asked for are missing
};

template <class T>
struct MopTotals {
  Total<T> totals[kMaxTotals];
  int count;
  i64 layers, places, num_experts;
  const i64* experts;
};

// Four sums per thread, `lanes` threads per sum.
MOP_BOTH int packs_of_block(int threads, int lanes) { return threads / lanes; }

// A block works on one group of one tensor. Shared memory: four floats per thread, and the place of the block's expert.
template <class T>
MOP_KERNEL mop_ffn_sums_kernel(MopTotals<T> p) {
  int which = 0;
  while (which + 1 < p.count && block_index() >= p.totals[which + 1].first_block) ++which;
  const Total<T>& total = p.totals[which];
  const i64 size = total.size;
  const int packs = packs_of_block(block_threads(), total.lanes);
  const i64 blocks = div_up(size, i64(packs) * 4), block = block_index() - total.first_block;
  const i64 group = block / blocks, element = (block % blocks * packs + thread_index() % packs) * 4;
  const i64 group_experts = total.experts ? p.num_experts : 1;
  const i64 layer = group / group_experts, expert = group % group_experts;

  Pack<float>* const sums = shared_memory<Pack<float>>();
  int* const found = reinterpret_cast<int*>(sums + block_threads());
  const bool search = p.experts != nullptr && total.experts;
  if (search) {
    if (thread_index() == 0) *found = -1;
    sync_threads();
    for (i64 k = thread_index(); k < p.places; k += block_threads())
      if (p.experts[k] == expert) *found = int(k);
    sync_threads();
  }
  const i64 first_layer = total.layers ? layer : 0, layers = total.layers ? 1 : p.layers;
  const i64 first_place = search ? *found : total.experts ? expert : 0;
  const i64 places = total.experts ? (first_place < 0 || p.places == 0 ? 0 : 1) : p.places;  // none: zeros

  const bool packed = size % 4 == 0;
  const int valid = int(least(i64(4), size - element));
  Pack<float> sum{};
  const i64 parts = layers * places * total.parts_a_pair;
  if (!total.own && element < size && thread_index() < packs * total.lanes)
    for (i64 k = thread_index() / packs; k < parts; k += total.lanes) {
      const i64 place = first_place + k / total.parts_a_pair % places;
      const i64 pair = (first_layer + k / total.parts_a_pair / places) * p.places + place;
      const float* const from = total.parts + (pair * total.parts_a_pair + k % total.parts_a_pair) * size + element;
      sum = sum_of(sum, packed ? load4(from) : load_some<false>(from, valid));
    }
  if (total.lanes > 1) {
    sums[thread_index()] = sum;
    sync_threads();
    sum = {};
    if (thread_index() < packs)
      for (int lane = 0; lane < total.lanes; ++lane) sum = sum_of(sum, sums[lane * packs + thread_index()]);
  }
  const bool writes = !total.own || places == 0;
  if (!writes || thread_index() >= packs || element >= size) return;
  T* const to = total.result + group * size + element;
  if (packed)
    store4(to, sum);
  else
    store_some<false>(to, sum, valid);
}

}  // namespace mop::ffn
