// The activations and their derivatives, for the CPU kernels of every instruction level and for the CUDA kernels.
//
// All functions have internal linkage, and libm is called without inline functions of std::. The level files compile
// this header again with other flags, and a shared weak symbol could be taken from the wrong level.
#pragma once

#include <math.h>

#include "dims.h"

#if defined(__CUDACC__)
#define MOP_ACTIVATION static __device__ __forceinline__
#define MOP_MATH(function) function
#else
#define MOP_ACTIVATION static inline __attribute__((always_inline))
#define MOP_MATH(function) __builtin_##function
#endif
#if defined(__CUDACC__) || defined(MOP_EMULATE)
#define MOP_THREE_CUBIC (3.f * 0.044715f)  // one unit in the last place beside float(3 * 0.044715): keeps old bits
#else
#define MOP_THREE_CUBIC (3 * 0.044715)
#endif

namespace mop {

MOP_ACTIVATION float exp_of(float x) { return MOP_MATH(expf)(x); }
MOP_ACTIVATION double exp_of(double x) { return MOP_MATH(exp)(x); }
MOP_ACTIVATION float erf_of(float x) { return MOP_MATH(erff)(x); }
MOP_ACTIVATION double erf_of(double x) { return MOP_MATH(erf)(x); }
MOP_ACTIVATION float tanh_of(float x) { return MOP_MATH(tanhf)(x); }
MOP_ACTIVATION double tanh_of(double x) { return MOP_MATH(tanh)(x); }

template <class T>
MOP_ACTIVATION T activated(Activation activation, T x) {
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

// The derivative of activated(activation, x).
template <class T>
MOP_ACTIVATION T slope(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x > T(0) ? T(1) : T(0);
    case Activation::gelu:
      return T(0.5) * (T(1) + erf_of(x * T(M_SQRT1_2))) + x * exp_of(T(-0.5) * x * x) * T(M_2_SQRTPI * M_SQRT1_2 * 0.5);
    case Activation::gelu_tanh: {
      const T scale = T(M_SQRT2 * M_2_SQRTPI * 0.5);
      const T tanh = tanh_of(scale * (x + T(0.044715) * x * x * x));
      return T(0.5) * (T(1) + tanh) + T(0.5) * x * (T(1) - tanh * tanh) * scale * (T(1) + T(MOP_THREE_CUBIC) * x * x);
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

}  // namespace mop
