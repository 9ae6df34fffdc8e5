// Prints results of kernels of the level "plain", without torch: test_arm64.py compares two processors.
#include <cmath>
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace mop::plain {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace mop::plain

namespace {

using mop::i64;

template <class T>
std::vector<T> numbers(i64 size, double step) {
  std::vector<T> filled(size);
  for (i64 k = 0; k < size; ++k) filled[k] = T(std::sin(step * double(k + 1)));
  return filled;
}

template <class T>
void print(const char* name, const std::vector<T>& values) {
  std::printf("%s%zu", name, sizeof(T));
  for (T value : values) std::printf(" %.17g", double(value));
  std::printf("\n");
}

template <class T>
void run(const mop::Kernels<T>& kernels) {
  const mop::PhmDims dims{3, 2, 4, 5, 7, 6};  // odd sides: loops have rests
  const i64 rows = 9;
  const auto x = numbers<T>(rows * dims.in(), .7), grad = numbers<T>(rows * dims.out(), .3);
  const auto rule_in = numbers<T>(dims.j() * dims.g_in, .9), rule_out = numbers<T>(dims.j() * dims.g_out, 1.1);
  const auto local = numbers<T>(dims.local_size(), 1.3), bias = numbers<T>(dims.out(), 1.7);
  const mop::Factors<T> factors{rule_in.data(), rule_out.data(), local.data(), bias.data()};

  std::vector<T> y(grad.size()), forward(mop::map_forward_scratch(dims, rows));
  kernels.map_forward({dims, factors, rows, x.data(), y.data(), false}, forward.data());
  print("map_forward", y);

  std::vector<T> grad_x(x.size()), grad_in(rule_in.size()), grad_out(rule_out.size()), grad_local(local.size());
  std::vector<T> grad_bias(bias.size()), backward(mop::map_backward_scratch(dims, rows));
  const mop::Gradients<T> grads{grad_in.data(), grad_out.data(), grad_local.data(), grad_bias.data()};
  const mop::Rows<T> grad_y{grad.data(), dims.out(), 1};
  kernels.map_backward({dims, factors, rows, x.data(), grad_y, grads, grad_x.data(), false}, backward.data());
  print("grad_x", grad_x);
  print("grad_rule_in", grad_in);
  print("grad_rule_out", grad_out);
  print("grad_local", grad_local);
  print("grad_bias", grad_bias);

  const i64 width = dims.in();
  std::vector<T> normal(x.size());
  kernels.rms_norm({{0, rows, width}, 1e-6, x.data(), x.data(), normal.data()});
  print("rms_norm", normal);

  std::vector<T> logits = x, peak{T(-0.5)}, total{T(2)};
  const T factor = kernels.softmax_piece(i64(logits.size()), logits.data(), peak.data(), total.data());
  print("softmax_piece", logits);
  print<T>("softmax", {peak[0], total[0], factor});
}

}  // namespace

int main() {
  run(mop::plain::kFloat);
  run(mop::plain::kDouble);
}
