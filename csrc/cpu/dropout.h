// Dropout as the kernels take it. dropout_bits.h says which elements it keeps.
#pragma once

#include <math.h>

#include "../dims.h"

namespace mop {

struct Dropout {
  uint64_t seed;
  int32_t threshold;  // of 65536: an element is dropped if its 16 random bits are below; 0 keeps all
  double scale;       // of kept elements, 1 / (1 - threshold / 65536): what 16 bits give, not what was asked for
};

// seed: of one element; null without dropout. p: the probability asked for, in [0, 1).
inline Dropout dropout_of(const i64* seed, double p) {
  const int32_t threshold = seed ? int32_t(nearbyint(p * 65536)) : 0;  // half to even, as Python's round
  return {seed ? uint64_t(*seed) : 0, threshold, threshold < 65536 ? 65536. / (65536 - threshold) : 0.};
}

}  // namespace mop
