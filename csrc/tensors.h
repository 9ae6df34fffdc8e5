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

// The strides of a contiguous tensor.
inline std::vector<i64> contiguous_strides(const i64* sizes, std::size_t dims) {
  std::vector<i64> strides(dims, 1);
  for (std::size_t k = dims; k-- > 1;) strides[k - 1] = strides[k] * std::max<i64>(1, sizes[k]);
  return strides;
}

// Allocations and views call torch's C functions: torch's dispatcher would take a microsecond for each.
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// An uninitialised contiguous tensor with the device of `like`, and its dtype if none is given.
inline Tensor empty(const Tensor& like, Sizes sizes, std::optional<ScalarType> dtype = {}) {
  const std::vector<i64> strides = contiguous_strides(sizes.data(), sizes.size());
  int32_t device_type, device_index, type;
  MOP_GUARD(aoti_torch_get_device_type(like.get(), &device_type) == AOTI_TORCH_SUCCESS);
  MOP_GUARD(aoti_torch_get_device_index(like.get(), &device_index) == AOTI_TORCH_SUCCESS);
  MOP_GUARD(aoti_torch_get_dtype(like.get(), &type) == AOTI_TORCH_SUCCESS);
  if (dtype) type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  AtenTensorHandle made;
  MOP_GUARD(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), type, device_type, device_index,
                                     &made) == AOTI_TORCH_SUCCESS);
  return Tensor(made);
}

inline Tensor empty(const Tensor& like, std::initializer_list<i64> sizes, std::optional<ScalarType> dtype = {}) {
  return empty(like, Sizes(sizes.begin(), sizes.size()), dtype);
}

inline Tensor empty_as(const Tensor& t) { return empty(t, t.sizes()); }

// An uninitialised tensor with the sizes of x, but the last one, which is `width`.
inline Tensor empty_rows(const Tensor& x, i64 width) {
  std::vector<i64> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = width;
  return empty(x, sizes);
}

// A contiguous tensor, seen with other sizes.
inline Tensor viewed(const Tensor& t, Sizes sizes) {
  const std::vector<i64> strides = contiguous_strides(sizes.data(), sizes.size());
  AtenTensorHandle made;
  MOP_GUARD(aoti_torch__reinterpret_tensor(t.get(), sizes.size(), sizes.data(), strides.data(), 0, &made) ==
            AOTI_TORCH_SUCCESS);
  return Tensor(made);
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
