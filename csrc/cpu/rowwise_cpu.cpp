// rms_norm, dropout_add, relu_dropout and gated_gelu_dropout: the operations of a training step that work on one row at
// a time.
//
// A task takes a block of rows. The blocks depend on the width alone, so that the sums of the gradient of rms_norm's
// weight, one part per block, are equal for any number of threads.
#include "cpu_ops.h"

namespace mop {
namespace {

struct RowsOf {
  i64 rows, width;

  explicit RowsOf(const Tensor& x) : rows(1), width(0) {
    MOP_GUARD(x.dim() >= 1);
    for (i64 k = 0; k + 1 < x.dim(); ++k) rows *= x.size(k);
    width = x.size(x.dim() - 1);
  }

  // A block has 64 KB of float32, so that a kernel that reads a row twice finds it in the L1 or L2 cache. Its height is
  // bounded because the gradient of a weight is one running sum over the rows of a block.
  i64 block() const { return std::max<i64>(1, std::min<i64>(64, 16384 / std::max<i64>(width, 1))); }
  i64 blocks() const { return (rows + block() - 1) / block(); }

  // Calls body(k, first, count) for each block k, of the rows from `first` on.
  template <class Body>
  void for_each_block(const Body& body) const {
    for_each_task(blocks(), [&](i64 k) { body(k, k * block(), std::min(block(), rows - k * block())); });
  }
};

Dropout dropout_by(const std::optional<Tensor>& seed, double p) {
  MOP_GUARD(p >= 0 && p < 1 && (p == 0 || seed));
  MOP_GUARD(!seed || (seed->numel() == 1 && seed->scalar_type() == ScalarType::Long));
  return dropout_of(in<i64>(seed), p);
}

Tensor dropout_plus(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& seed, double p) {
  const RowsOf of(x);
  MOP_GUARD(!residual || residual->numel() == x.numel());
  const Dropout dropout = dropout_by(seed, p);
  const Tensor y = empty_as(x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T *from = in<T>(x), *plus = in<T>(residual);
    T* to = out<T>(y);
    of.for_each_block([&](i64, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().dropout_add({{first, count, of.width}, dropout, from + at, plus ? plus + at : nullptr, to + at});
    });
  });
  return y;
}

}  // namespace

Tensor rms_norm(Tensor x, Tensor weight, double eps) {
  const RowsOf of(x);
  MOP_GUARD(weight.numel() == of.width);
  Tensor y = empty_as(x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T *from = in<T>(x), *weights = in<T>(weight);
    T* to = out<T>(y);
    of.for_each_block([&](i64, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().rms_norm({{first, count, of.width}, eps, from + at, weights, to + at});
    });
  });
  return y;
}

std::vector<Tensor> rms_norm_backward(Tensor grad, Tensor x, Tensor weight, double eps, i64 mask) {
  const RowsOf of(x);
  MOP_GUARD(weight.numel() == of.width && grad.numel() == x.numel());
  if (!(mask & 3)) return {};
  const SumOfParts of_weight(mask & 2, x, of.blocks(), weight.sizes());
  std::vector<Tensor> asked;
  if (mask & 1) asked.push_back(empty_as(x));
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T *grads = in<T>(grad), *from = in<T>(x), *weights = in<T>(weight);
    T* const to_x = mask & 1 ? out<T>(asked[0]) : nullptr;
    of.for_each_block([&](i64 k, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().rms_norm_backward({{first, count, of.width},
                                      eps,
                                      grads + at,
                                      from + at,
                                      weights,
                                      to_x ? to_x + at : nullptr,
                                      of_weight.at<T>(k)});
    });
  });
  of_weight.finish(asked);
  return asked;
}

Tensor dropout_add(Tensor x, std::optional<Tensor> residual, Tensor seed, double p) {
  return dropout_plus(x, residual, seed, p);
}

std::vector<Tensor> dropout_add_backward(Tensor grad, Tensor seed, double p, i64 mask) {
  if (!(mask & 1)) return {};
  return {dropout_plus(grad, std::nullopt, seed, p)};
}

std::vector<Tensor> relu_dropout(Tensor x, std::optional<Tensor> seed, double p) {
  const RowsOf of(x);
  const Dropout dropout = dropout_by(seed, p);
  const i64 bytes = (of.width + 7) / 8;
  std::vector<i64> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = bytes;
  const Tensor y = empty_as(x), bits = empty(x, sizes, ScalarType::Byte);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const T* from = in<T>(x);
    T* to = out<T>(y);
    unsigned char* to_bits = out<unsigned char>(bits);
    of.for_each_block([&](i64, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().relu_dropout({{first, count, of.width}, dropout, from + at, to + at, to_bits + first * bytes});
    });
  });
  return {y, bits};
}

std::vector<Tensor> relu_dropout_backward(Tensor grad, Tensor bits, double p, i64 mask) {
  if (!(mask & 1)) return {};
  const RowsOf of(grad);
  const i64 bytes = (of.width + 7) / 8;
  MOP_GUARD(bits.numel() == of.rows * bytes && bits.scalar_type() == ScalarType::Byte);
  const i64 any_seed = 0;  // the bits say what was kept
  const double scale = dropout_of(&any_seed, p).scale;
  const Tensor grad_x = empty_as(grad);
  by_dtype(grad, [&](auto zero) {
    using T = decltype(zero);
    const T* from = in<T>(grad);
    const unsigned char* from_bits = in<unsigned char>(bits);
    T* to = out<T>(grad_x);
    of.for_each_block([&](i64, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().relu_dropout_backward(
          {{first, count, of.width}, scale, from + at, from_bits + first * bytes, to + at});
    });
  });
  return {grad_x};
}

Tensor gated_gelu_dropout(Tensor gate, Tensor x, std::optional<Tensor> seed, double p) {
  const RowsOf of(gate);
  MOP_GUARD(x.numel() == gate.numel());
  const Dropout dropout = dropout_by(seed, p);
  const Tensor y = empty_as(gate);
  by_dtype(gate, [&](auto zero) {
    using T = decltype(zero);
    const T *gates = in<T>(gate), *from = in<T>(x);
    T* to = out<T>(y);
    of.for_each_block([&](i64, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().gated_gelu_dropout({{first, count, of.width}, dropout, gates + at, from + at, to + at});
    });
  });
  return y;
}

std::vector<Tensor> gated_gelu_dropout_backward(Tensor grad, Tensor gate, Tensor x, std::optional<Tensor> seed,
                                                double p, i64 mask) {
  const RowsOf of(gate);
  MOP_GUARD(x.numel() == gate.numel() && grad.numel() == gate.numel());
  const Dropout dropout = dropout_by(seed, p);
  std::vector<Tensor> asked;
  Tensor grad_gate, grad_x;
  if (mask & 1) asked.push_back(grad_gate = empty_as(gate));
  if (mask & 2) asked.push_back(grad_x = empty_as(x));
  if (asked.empty()) return asked;
  by_dtype(gate, [&](auto zero) {
    using T = decltype(zero);
    const T *grads = in<T>(grad), *gates = in<T>(gate), *from = in<T>(x);
    T *to_gate = mask & 1 ? out<T>(grad_gate) : nullptr, *to_x = mask & 2 ? out<T>(grad_x) : nullptr;
    of.for_each_block([&](i64, i64 first, i64 count) {
      const i64 at = first * of.width;
      kernels<T>().gated_gelu_dropout_backward({{first, count, of.width},
                                                dropout,
                                                grads + at,
                                                gates + at,
                                                from + at,
                                                to_gate ? to_gate + at : nullptr,
                                                to_x ? to_x + at : nullptr});
    });
  });
  return asked;
}

Tensor softmax_piece(Tensor logits, Tensor peak, Tensor total) {
  const i64 rows = peak.numel(), classes = logits.numel() / std::max<i64>(rows, 1);
  MOP_GUARD(logits.is_contiguous() && peak.is_contiguous() && total.is_contiguous() && total.numel() == rows);
  MOP_GUARD(peak.scalar_type() == logits.scalar_type() && total.scalar_type() == logits.scalar_type());
  const Tensor scale = empty_as(peak);
  by_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    T *at = out<T>(logits), *peaks = out<T>(peak), *totals = out<T>(total), *scales = out<T>(scale);
    constexpr i64 kRows = 16;
    for_each_task((rows + kRows - 1) / kRows, [&](i64 task) {
      for (i64 r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r)
        scales[r] = kernels<T>().softmax_piece(classes, at + r * classes, peaks + r, totals + r);
    });
  });
  return scale;
}

}  // namespace mop
