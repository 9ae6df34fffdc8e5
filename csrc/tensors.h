// Tensors on the host side of the CPU and the CUDA kernels: guards, typed pointers, dtypes, allocations.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "dims.h"

// A guard against memory errors, in one line. validation.py finds the errors of users and explains them.
#define MOP_GUARD(condition) STD_TORCH_CHECK(condition, "mop_kernels internal guard failed: " #condition)

namespace mop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(__CUDACC__) || defined(MOP_ON_CUDA)
inline bool is_here(const Tensor& t) { return t.is_cuda(); }
#else
inline bool is_here(const Tensor& t) { return t.is_cpu(); }  // also the CUDA kernels under MOP_EMULATE (device.h)
#endif

template <class T>
const T* in(const Tensor& t) {
  MOP_GUARD(is_here(t) && t.is_contiguous());
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

inline Tensor empty(const Tensor& like, std::initializer_list<i64> sizes, std::optional<ScalarType> dtype = {}) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// An uninitialised tensor with the sizes of x, but the last one, which is `width`.
inline Tensor empty_rows(const Tensor& x, i64 width) {
  std::vector<i64> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = width;
  return torch::stable::new_empty(x, sizes);
}

template <class T>
struct DtypeOf;  // kDtype: the dtype of tensors with elements T
template <>
struct DtypeOf<float> {
  static constexpr ScalarType kDtype = ScalarType::Float;
};
template <>
struct DtypeOf<double> {
  static constexpr ScalarType kDtype = ScalarType::Double;
};

// Returns function(T{}) with the type T, one of the listed, of the elements of t.
template <class T, class... Others, class Function>
auto by_dtype_among(const Tensor& t, const Function& function) {
  if constexpr (sizeof...(Others) > 0)
    if (t.scalar_type() != DtypeOf<T>::kDtype) return by_dtype_among<Others...>(t, function);
  MOP_GUARD(t.scalar_type() == DtypeOf<T>::kDtype);
  return function(T{});
}

inline Activation activation_of(const std::string& name) {
  const char* const names[] = {"relu", "gelu", "gelu_tanh", "tanh", "silu", "identity"};
  for (int k = 0; k < 6; ++k)
    if (name == names[k]) return Activation(k);
  MOP_GUARD(false);
  return Activation::identity;
}

}  // namespace mop
