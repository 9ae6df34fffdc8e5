// The small products that the kernels of mop_ffn are made of: by all threads of a block, on operands of any size.
//
// A thread computes 4 x 4 results and reads both operands by fours, from scratch memory, whose rows are padded floats,
// or from a tensor. For 64 multiply-adds it reads 8 such rows: on an SM (128 multiply-adds and 128
// bytes of shared memory a cycle) the reads take about as long as the arithmetic where lanes share one of the operands.
#pragma once

#include "device.h"

namespace mop::ffn {

MOP_BOTH int padded(int size) { return (size + 3) / 4 * 4; }
// An odd number of fours: rows that neighbouring lanes read start in different banks.
MOP_BOTH int odd_fours(int size) { return ((size + 3) / 4 | 1) * 4; }

// A matrix of an operand: its rows lie `stride` apart. kPacked: every row starts at a whole four and has whole fours,
// or memory past its end that may be read. Otherwise elements are read one by one, none past the end.
template <class S, bool kPacked>
struct Operand {
  const S* data;
  i64 stride;
};

using Scratch = Operand<float, true>;

// Returns the first `valid` of four elements; the others are undefined.
template <bool kPacked, class S>
MOP_DEVICE Pack<float> load_some(const S* from, int valid) {
  if constexpr (kPacked) {
    return load4(from);
  } else {
    Pack<float> pack;
    MOP_UNROLL
    for (int e = 0; e < 4; ++e) pack.at[e] = e < valid ? to_float(from[e]) : 0.f;
    return pack;
  }
}

template <bool kPacked, class T>
MOP_DEVICE void store_some(T* to, const Pack<float>& pack, int valid) {
  if constexpr (kPacked) {
    store4(to, pack);
  } else {
    MOP_UNROLL
    for (int e = 0; e < 4; ++e)
      if (e < valid) to[e] = from_float<T>(pack.at[e]);
  }
}

MOP_DEVICE Pack<float> sum_of(const Pack<float>& a, const Pack<float>& b) {
  return {{a.at[0] + b.at[0], a.at[1] + b.at[1], a.at[2] + b.at[2], a.at[3] + b.at[3]}};
}

// block[y][e]: elements (first + e, q + y) of an operand whose contracted axis is q. kAlongQ: a row of memory is one e,
// over q; otherwise it is one q. Elements past the end are undefined.
template <bool kAlongQ, class S, bool kPacked>
MOP_DEVICE void load_block(const Operand<S, kPacked>& from, int first, int size, int q, float (&block)[4][4]) {
  MOP_UNROLL
  for (int k = 0; k < 4; ++k) {
    const i64 row = kAlongQ ? least(first + k, size - 1) : q + k;
    const Pack<float> pack = load_some<kPacked>(from.data + row * from.stride + (kAlongQ ? q : first), size - first);
    MOP_UNROLL
    for (int e = 0; e < 4; ++e) (kAlongQ ? block[e][k] : block[k][e]) = pack.at[e];
  }
}

// Elements (first + e, q) alone.
template <bool kAlongQ, class S, bool kPacked>
MOP_DEVICE void load_single(const Operand<S, kPacked>& from, int first, int size, int q, float (&single)[4]) {
  MOP_UNROLL
  for (int e = 0; e < 4; ++e) {
    const i64 at = least(first + e, size - 1);
    single[e] = to_float(from.data[kAlongQ ? at * from.stride + q : q * from.stride + at]);
  }
}

template <bool kAAlongQ, bool kBAlongQ, class A, class B>
MOP_DEVICE void add_four(const A& a, int m, int size_m, const B& b, int k, int size_k, int q, float (&sums)[4][4]) {
  float left[4][4], right[4][4];
  load_block<kAAlongQ>(a, m, size_m, q, left);
  load_block<kBAlongQ>(b, k, size_k, q, right);
  MOP_UNROLL
  for (int y = 0; y < 4; ++y) {
    MOP_UNROLL
    for (int i = 0; i < 4; ++i) {
      MOP_UNROLL
      for (int e = 0; e < 4; ++e) sums[i][e] += left[y][i] * right[y][e];
    }
  }
}

template <bool kAAlongQ, bool kBAlongQ, class A, class B>
MOP_DEVICE void add_single(const A& a, int m, int size_m, const B& b, int k, int size_k, int q, float (&sums)[4][4]) {
  float left[4], right[4];
  load_single<kAAlongQ>(a, m, size_m, q, left);
  load_single<kBAlongQ>(b, k, size_k, q, right);
  MOP_UNROLL
  for (int i = 0; i < 4; ++i) {
    MOP_UNROLL
    for (int e = 0; e < 4; ++e) sums[i][e] += left[i] * right[e];
  }
}

// Quotients by one number. kBounded: dividends are less than 2^21. This holds for every count of elements in shared
// memory, and for the tasks of a result in the GPU's memory if the host has asked has_bounded_tasks(). Then a
// reciprocal takes a few instructions instead of some twenty. (k + 1/2) / n is at least 1 / 2n from a whole number:
// further than k < 2^21 times the relative error of the reciprocal and of one rounding, 1.5 * 2^-23.
template <bool kBounded>
struct Divisor {
  int number;
  float inverse;

  MOP_DEVICE explicit Divisor(int number) : number(number), inverse(kBounded ? reciprocal(float(number)) : 0.f) {}
  MOP_DEVICE int quotient(int k) const {
    if constexpr (kBounded) return int(fmaf(float(k), inverse, 0.5f * inverse));
    return k / number;
  }
};

// Returns whether the tasks of a result of this many rows and columns, 4 x 4 numbers each, may be divided by
// reciprocals.
MOP_BOTH bool has_bounded_tasks(i64 rows, i64 columns) { return rows * div_up(columns, i64(4)) < i64(1) << 21; }

// How a sum over q of unknown size is compiled: by whole fours, by fours and a rest, or one by one. Operands that are
// not packed along q must be read one by one.
constexpr int kFours = -1, kFoursAndRest = -2, kSingles = -3;

struct FromZero {
  MOP_DEVICE void operator()(int, int, int, int, float (&)[4][4]) const {}
};

// Calls store(batch, m, k, pack) for the sums over q of A[batch](m, q) B[batch](k, q), for k .. k + 3; only k below
// size_k are results. a_of and b_of give the operands of a batch. kQ is size_q, or one of the above. start(batch, m, k,
// rows, sums) gives the initial sums of at most four rows from m on.
template <bool kAAlongQ, bool kBAlongQ, int kQ, class A, class B, class Store, class Start = FromZero>
MOP_DEVICE void product(int batches, int size_m, int size_k, int size_q, const A& a_of, const B& b_of,
                        const Store& store, const Start& start = {}) {
  const int tiles_k = div_up(size_k, 4), tiles = div_up(size_m, 4) * tiles_k;
  const Divisor<kQ != kSingles> by_tiles(tiles), by_tiles_k(tiles_k);
  MOP_UNROLL_BY(1)
  for (int task = thread_index(); task < batches * tiles; task += block_threads()) {
    const int batch = by_tiles.quotient(task), tile = task - batch * tiles;
    const int row = by_tiles_k.quotient(tile), m = row * 4, k = (tile - row * tiles_k) * 4;
    const auto a = a_of(batch);
    const auto b = b_of(batch);
    float sums[4][4] = {};
    start(batch, m, k, least(4, size_m - m), sums);
    int q = 0;
    if constexpr (kQ > 0) {
      [[maybe_unused]] constexpr int kAtOnce = kQ > 4 ? 2 : 1;  // more would not stay in registers
      MOP_UNROLL_BY(kAtOnce)
      for (; q < kQ; q += 4) add_four<kAAlongQ, kBAlongQ>(a, m, size_m, b, k, size_k, q, sums);
    } else {
      if constexpr (kQ != kSingles) {
        MOP_UNROLL_BY(1)
        for (; q + 4 <= size_q; q += 4) add_four<kAAlongQ, kBAlongQ>(a, m, size_m, b, k, size_k, q, sums);
      }
      if constexpr (kQ != kFours) {
        MOP_UNROLL_BY(1)
        for (; q < size_q; ++q) add_single<kAAlongQ, kBAlongQ>(a, m, size_m, b, k, size_k, q, sums);
      }
    }
    MOP_UNROLL
    for (int i = 0; i < 4; ++i)
      if (m + i < size_m) store(batch, m + i, k, Pack<float>{{sums[i][0], sums[i][1], sums[i][2], sums[i][3]}});
  }
}

// Calls function(Size<kQ>{}) with the kQ of product() for sums by fours; kBySize: usual sizes are compiled apart, so
// that all reads of a sum can be under way at once.
template <int kQ>
struct Size {
  static constexpr int value = kQ;
};

template <bool kBySize, class Function>
MOP_DEVICE void by_size(int size, const Function& function) {
  if constexpr (kBySize) {
    switch (size) {
      case 4:
        return function(Size<4>{});
      case 8:
        return function(Size<8>{});
      case 16:
        return function(Size<16>{});
      case 32:
        return function(Size<32>{});
    }
  }
  function(Size<kFoursAndRest>{});
}

// Floats of `room` that dots() needs.
MOP_BOTH i64 dots_room(int threads) { return i64(17) * threads; }

// Calls store(m, k, sum over n and q of A(m, n, q) B(k, n, q)). For few results with long sums: threads share a sum,
// and their parts are summed in order. a_of(n) and b_of(n) give the operands of row n, whose rows run along q. kQ is
// kFours or kSingles. Threads meet before it returns.
template <int kQ, class A, class B, class Store>
MOP_DEVICE void dots(int size_m, int size_k, int rows, int size_q, const A& a_of, const B& b_of, float* room,
                     const Store& store) {
  const int tiles_k = div_up(size_k, 4), tiles = div_up(size_m, 4) * tiles_k;
  constexpr int width = kQ == kFours ? 4 : 1;  // of q at once
  const int packs = size_q / width, items = rows * packs;
  const int lanes = least(block_threads() > tiles ? block_threads() / tiles : 1, items);
  const int at_once = block_threads() / lanes;  // tiles
  const int lane = thread_index() % lanes;
  MOP_UNROLL_BY(1)
  for (int first = 0; first < tiles; first += at_once) {
    const int tile = first + thread_index() / lanes;
    float sums[4][4] = {};
    if (tile < tiles && tile < first + at_once) {
      const int m = tile / tiles_k * 4, k = tile % tiles_k * 4;
      MOP_UNROLL_BY(1)
      for (int item = lane; item < items; item += lanes) {
        const int n = item / packs, q = item % packs * width;
        if constexpr (kQ == kFours)
          add_four<true, true>(a_of(n), m, size_m, b_of(n), k, size_k, q, sums);
        else
          add_single<true, true>(a_of(n), m, size_m, b_of(n), k, size_k, q, sums);
      }
    }
    MOP_UNROLL
    for (int e = 0; e < 16; ++e) room[thread_index() * 17 + e] = sums[e / 4][e % 4];
    sync_threads();
    for (int result = thread_index(); result < at_once * 16; result += block_threads()) {
      const int tile = first + result / 16, e = result % 16;
      const int m = tile / tiles_k * 4 + e / 4, k = tile % tiles_k * 4 + e % 4;
      if (tile >= tiles || m >= size_m || k >= size_k) continue;
      float sum = 0.f;
      for (int other = 0; other < lanes; ++other) sum += room[(result / 16 * lanes + other) * 17 + e];
      store(m, k, sum);
    }
    sync_threads();
  }
}

}  // namespace mop::ffn
