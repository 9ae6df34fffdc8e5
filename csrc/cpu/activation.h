// The activations and their derivatives. Libm is called through builtins: no inline function of std:: may be used here.
#pragma once

#include <math.h>

#include "kernels.h"
#include "tiles.h"

namespace {

using namespace mop;

MOP_INLINE float exp_of(float x) { return __builtin_expf(x); }
MOP_INLINE double exp_of(double x) { return __builtin_exp(x); }
MOP_INLINE float erf_of(float x) { return __builtin_erff(x); }
MOP_INLINE double erf_of(double x) { return __builtin_erf(x); }
MOP_INLINE float tanh_of(float x) { return __builtin_tanhf(x); }
MOP_INLINE double tanh_of(double x) { return __builtin_tanh(x); }

template <class T>
MOP_INLINE T activated(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x < T(0) ? T(0) : x;  // NaN passes, as in torch
    case Activation::gelu:
      return T(0.5) * x * (T(1) + erf_of(x * T(M_SQRT1_2)));
    case Activation::gelu_tanh:
      return T(0.5) * x * (T(1) + tanh_of(T(M_SQRT2 * M_2_SQRTPI * 0.5) * (x + T(0.044715) * x * x * x)));
    case Activation::tanh:
      return tanh_of(x);
    case Activation::silu:
      return x / (T(1) + exp_of(-x));
    case Activation::identity:
      return x;
  }
  return x;
}

template <class T>
MOP_INLINE T slope(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x > T(0) ? T(1) : T(0);
    case Activation::gelu:
      return T(0.5) * (T(1) + erf_of(x * T(M_SQRT1_2))) + x * exp_of(T(-0.5) * x * x) * T(M_2_SQRTPI * M_SQRT1_2 * 0.5);
    case Activation::gelu_tanh: {
      const T scale = T(M_SQRT2 * M_2_SQRTPI * 0.5);
      const T tanh = tanh_of(scale * (x + T(0.044715) * x * x * x));
      return T(0.5) * (T(1) + tanh) + T(0.5) * x * (T(1) - tanh * tanh) * scale * (T(1) + T(3 * 0.044715) * x * x);
    }
    case Activation::tanh: {
      const T tanh = tanh_of(x);
      return T(1) - tanh * tanh;
    }
    case Activation::silu: {
      const T sigmoid = T(1) / (T(1) + exp_of(-x));
      return sigmoid * (T(1) + x * (T(1) - sigmoid));
    }
    case Activation::identity:
      return T(1);
  }
  return T(1);
}

template <class T>
void activate(Activation activation, i64 count, const T* x, T* y) {
  if (activation == Activation::relu)  // apart, so that it vectorises
    for (i64 k = 0; k < count; ++k) y[k] = x[k] < T(0) ? T(0) : x[k];
  else
    for (i64 k = 0; k < count; ++k) y[k] = activated(activation, x[k]);
}

// grad[k] = (grad[k] + more[k] ...) * slope(x[k])
template <class T>
void times_slope(Activation activation, i64 count, const T* x, T* grad) {
  if (activation == Activation::relu)
    for (i64 k = 0; k < count; ++k) grad[k] = x[k] > T(0) ? grad[k] : T(0);
  else
    for (i64 k = 0; k < count; ++k) grad[k] *= slope(activation, x[k]);
}

}  // namespace
