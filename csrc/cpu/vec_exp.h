// exp of a register: 2^n by adding a number so large that the sum is rounded to n, and a Taylor polynomial of the rest.
// Relative error 1e-7 in float32 and 2e-16 in float64. 0 where the result would not be a normal number. NaN stays NaN.
// For x <= 88 in float32 and 709 in float64. It must not be compiled with -ffast-math.
#pragma once

#include "dropout_bits.h"

namespace {

constexpr double kInverseFactorials[] = {
    1.,        1.,         1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,
    1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};

template <class T>
MOP_INLINE Vec<T> exp_lanes(Vec<T> x) {
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr int kBits = kFloat ? 23 : 52;   // of a mantissa
  constexpr int kDegree = kFloat ? 7 : 13;  // |rest| <= log(2) / 2: cut off below 6e-9 and 5e-18
  constexpr T kRound = kFloat ? T(0x1.8p23) : T(0x1.8p52), kLowest = kFloat ? T(-87) : T(-708);
  constexpr T kLog2High = kFloat ? T(0x1.63p-1) : T(0x1.62e42feep-1);  // so short that n times it is exact
  constexpr T kLog2Low = kFloat ? T(-0x1.bd0106p-13) : T(0x1.a39ef35793c76p-33);
  const Vec<T> shifted = x * T(1.4426950408889634074) + kRound;
  const Vec<T> n = shifted - kRound;
  const Vec<T> rest = (x - n * kLog2High) - n * kLog2Low;
  Vec<T> y = Vec<T>{} + T(kInverseFactorials[kDegree]);
  for (int k = kDegree - 1; k >= 0; --k) y = y * rest + T(kInverseFactorials[k]);
  const Lanes<T> power = (Lanes<T>(shifted) << kBits) + (Lanes<T>(Vec<T>{} + T(1)));
  y *= Vec<T>(power);  // not an addition to the exponent, which makes numbers of some NaN
  return dropped<T>(y, ~Lanes<T>(x < kLowest));
}

}  // namespace
