// phm_linear: y = x W + bias with W = sum_i rule[i] (x) local[i], as two products, by the way that costs less:
//
//   W built once   W by phm_weight, then y = x W: terms*in*out and rows*in*out multiply-adds, and W through memory
//   rule first     t[n, i, c, u] = sum_a x[n, a, u] rule[i, a, c]
//                  y[n, c, v] = sum_iu t[n, i, c, u] local[i, u, v]
//                  rows*terms*(in*g_out + loc_in*out) multiply-adds, and t through memory; less on few rows
//
// Backward: the gradient of x is the same product with both factors transposed. The gradients of rule and local come
// from that of W, x^T gy, by the backward of phm_weight.
#include "../ops.h"
#include "products.h"

namespace mop {
namespace {

// A full rule and its locals with the strides of their elements, so that both may be transposed.
template <class T>
struct FullRule {
  PhmDims dims;
  const T *rule, *local;
  i64 rule_a, rule_c, local_u, local_v;

  FullRule transposed() const {
    const PhmDims& d = dims;
    return {{d.terms, 1, d.g_out, d.g_in, d.loc_out, d.loc_in}, rule, local, rule_c, rule_a, local_v, local_u};
  }
};

template <class T>
FullRule<T> full_rule(const PhmDims& d, const Tensor& rule, const Tensor& local) {
  return {d, in<T>(rule), in<T>(local), d.g_out, 1, d.loc_out, 1};
}

bool rule_first_is_less(i64 rows, const PhmDims& d) {
  constexpr i64 kMemory = 16;  // multiply-adds in the time of one write and one read of a number
  const i64 weight_once = (d.terms + rows + kMemory) * d.in() * d.out();
  return rows * d.terms * (d.g_out * d.in() + d.loc_in * d.out() + kMemory * d.g_out * d.loc_in) < weight_once;
}

template <class T>
void rule_first(const Launch& launch, const Tensor& like, const FullRule<T>& f, i64 rows, const T* x, const T* bias,
                T* y) {
  const PhmDims& d = f.dims;
  const i64 rule_term = d.g_in * d.g_out, local_term = d.loc_in * d.loc_out;
  const i64 planes = d.terms * d.g_out;  // of t, [n, i, c, u]
  const Tensor t = empty(like, {rows, planes, d.loc_in});
  Matmul<T> p{};
  p.a = x, p.b = f.rule, p.c = out<T>(t);
  p.batch = axis(1, 0, 0);
  p.m = axis(rows, d.loc_in, {d.in(), 1}, {planes * d.loc_in, 1});
  p.n = axis(d.terms, d.g_out, {rule_term, f.rule_c}, {d.g_out * d.loc_in, d.loc_in});
  p.k = axis(d.g_in, d.loc_in, f.rule_a);
  matmul(launch, like, "phm_linear, rule first", p, t.numel());
  p = {};
  p.a = in<T>(t), p.b = f.local, p.c = y, p.bias = bias;
  p.batch = axis(1, 0, 0);
  p.m = axis(rows, d.g_out, {planes * d.loc_in, d.loc_in}, {d.out(), d.loc_out}, {0, d.loc_out});
  p.n = axis(d.loc_out, f.local_v, 1, 1);
  p.k = axis(d.terms, d.loc_in, {d.g_out * d.loc_in, 1}, {local_term, f.local_u});
  matmul(launch, like, "phm_linear, locals", p, rows * d.out());
}

// c = a b + bias with a (rows, depth), b (depth, columns), strides of both given.
template <class T>
void dense(const Launch& launch, const Tensor& like, i64 rows, i64 depth, i64 columns, const T* a, Strides of_a,
           const T* b, Strides of_b, const T* bias, T* c) {
  Matmul<T> p{};
  p.a = a, p.b = b, p.c = c, p.bias = bias;
  p.batch = axis(1, 0, 0);
  p.m = axis(rows, of_a.outer_stride, columns);
  p.n = axis(columns, of_b.stride, 1, 1);
  p.k = axis(depth, of_a.stride, of_b.outer_stride);
  matmul(launch, like, "phm_linear, dense", p, rows * columns);
}

}  // namespace

Tensor phm_linear(Tensor x, Tensor rule, Tensor local, std::optional<Tensor> bias) {
  const PhmDims d = weight_dims(rule, local);
  MOP_GUARD(rule.dim() == 3 && x.size(x.dim() - 1) == d.in() && fits(bias, d.out()));
  const i64 rows = x.numel() / d.in();
  const Tensor y = empty_rows(x, d.out());
  const Launch launch(x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    if (rule_first_is_less(rows, d))
      return rule_first(launch, x, full_rule<T>(d, rule, local), rows, in<T>(x), in<T>(bias), out<T>(y));
    const Tensor weight = phm_weight(rule, local);
    dense(launch, x, rows, d.in(), d.out(), in<T>(x), {d.in(), 1}, in<T>(weight), {d.out(), 1}, in<T>(bias), out<T>(y));
  });
  return y;
}

std::vector<Tensor> phm_linear_backward(Tensor grad, Tensor x, Tensor rule, Tensor local, i64 mask) {
  const PhmDims d = weight_dims(rule, local);
  MOP_GUARD(rule.dim() == 3 && x.size(x.dim() - 1) == d.in() && grad.size(grad.dim() - 1) == d.out());
  grad = as_contiguous(grad);
  const i64 rows = x.numel() / d.in();
  MOP_GUARD(grad.numel() == rows * d.out());
  const Launch launch(x);
  std::vector<Tensor> asked;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    if (mask & 1) {
      asked.push_back(empty_as(x));
      const FullRule<T> back = full_rule<T>(d, rule, local).transposed();
      if (rule_first_is_less(rows, back.dims)) {
        rule_first<T>(launch, x, back, rows, in<T>(grad), nullptr, out<T>(asked.back()));
      } else {
        const Tensor weight = phm_weight(rule, local);
        dense<T>(launch, x, rows, d.out(), d.in(), in<T>(grad), {d.out(), 1}, in<T>(weight), {1, d.out()}, nullptr,
                 out<T>(asked.back()));
      }
    }
    if (mask & 6) {
      const Tensor grad_weight = empty(x, {d.in(), d.out()});
      dense<T>(launch, x, d.in(), rows, d.out(), in<T>(x), {1, d.in()}, in<T>(grad), {d.out(), 1}, nullptr,
               out<T>(grad_weight));
      for (Tensor& factor : phm_weight_backward(grad_weight, rule, local, mask >> 1 & 3)) asked.push_back(factor);
    }
    if (mask & 8) {
      asked.push_back(empty(x, {d.out()}));
      sum_parts(launch, x, in<T>(grad), 1, rows, d.out(), out<T>(asked.back()));
    }
  });
  return asked;
}

}  // namespace mop
