// The random bits of dropout, a function of (seed, row, column): any kernel may make any part of them, in any order.
//
// Each row has two 32-bit keys. A group is 16 columns of a row. Eight 32-bit words decide it: their low halves decide
// columns 0..7 and their high halves columns 8..15. This does not depend on the width of a register.
#pragma once

#include "dropout.h"
#include "vec.h"

namespace {

constexpr int kDropoutGroup = 16;  // columns

template <class T>
using Lanes = decltype(Vec<T>{} > Vec<T>{});  // integers as wide as T: all ones where a comparison holds

struct DropoutRow {  // the keys of one row
  uint32_t a, b;
};

MOP_INLINE DropoutRow dropout_row(uint64_t seed, int64_t row) {
  uint64_t z = seed + (uint64_t(row) + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return {uint32_t(z), uint32_t(z >> 32)};
}

// keep[16 / kLanes<T>]: all ones where a column of group `group`, of columns 16 group to 16 group + 15, is kept. A
// threshold of 0 makes no bits.
template <class T>
MOP_INLINE void dropout_keep(DropoutRow row, int32_t threshold, int64_t group, Lanes<T>* keep) {
  constexpr int kBytes = kVectorBytes < 32 ? kVectorBytes : 32;  // eight words
  typedef uint32_t Words __attribute__((vector_size(kBytes)));
  typedef int32_t Halves __attribute__((vector_size(kBytes)));  // signed: cheaper to compare
  constexpr int W = kBytes / 4, N = 8 / W;
  constexpr uint32_t kStep = 0x9E3779B1u;
  if (threshold == 0) {
    for (int n = 0; n < kDropoutGroup / kLanes<T>; ++n) keep[n] = ~Lanes<T>{};
    return;
  }
  Halves kept[2 * N];
  for (int n = 0; n < N; ++n) {
    Words x;
    for (int lane = 0; lane < W; ++lane) x[lane] = uint32_t(n * W + lane) * kStep;
    x = (x + uint32_t(group) * 8u * kStep) ^ row.a;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = ((x ^ (x >> 15)) + row.b) * 0x846ca68bu;
    x ^= x >> 16;
    kept[n] = Halves(x & 0xffffu) >= threshold;
    kept[N + n] = Halves(x >> 16) >= threshold;
  }
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)  // through memory, the register would wait for both halves to be written
    keep[0] = Lanes<T>(_mm512_inserti64x4(_mm512_castsi256_si512(__m256i(kept[0])), __m256i(kept[1]), 1));
#else
    memcpy(keep, kept, sizeof(kept));
#endif
  } else {
    typedef int32_t Half __attribute__((vector_size(kVectorBytes / 2)));
    Half half[kDropoutGroup / kLanes<T>];
    memcpy(half, kept, sizeof(kept));
    for (int n = 0; n < kDropoutGroup / kLanes<T>; ++n) keep[n] = __builtin_convertvector(half[n], Lanes<T>);
  }
}

// x where kept, else 0. A NaN that is dropped is 0 as well.
template <class T>
MOP_INLINE Vec<T> dropped(Vec<T> x, Lanes<T> keep) {
  return Vec<T>(Lanes<T>(x) & keep);
}

}  // namespace
