// prefix_attention: attention over a prefix and over tokens, with dropout.
//
// One task per head of an example makes all its results from its own scratch. The gradients of a prefix are summed over
// the examples that use it, in order of the examples.
#include "cpu_ops.h"

namespace mop {
namespace {

struct Call {
  const Tensor &query, &key, &value;
  const std::optional<Tensor>&prefix_key, &prefix_value, &rows, &bias, &key_mask, &seed;
  bool causal;
  double scale, dropout;

  i64 examples() const { return query.size(0); }
  i64 queries() const { return query.size(1); }
  i64 heads() const { return query.size(2); }
  i64 width() const { return query.size(3); }
  i64 tokens() const { return key.size(1); }
  i64 prefix() const { return prefix_key ? prefix_key->size(2) : 0; }
  i64 prefixes() const { return prefix_key ? prefix_key->size(0) : 0; }
  i64 row_of(i64 b) const { return rows ? in<i64>(rows)[b] : 0; }

  void check() const {
    MOP_GUARD(query.dim() == 4 && key.dim() == 4 && value.dim() == 4 && value.numel() == key.numel());
    for (int dim : {0, 2, 3}) MOP_GUARD(key.size(dim) == query.size(dim) && value.size(dim) == query.size(dim));
    MOP_GUARD(prefix_key.has_value() == prefix_value.has_value());
    if (prefix_key) {
      MOP_GUARD(prefix_key->dim() == 4 && prefix_key->size(1) == heads() && prefix_key->size(3) == width());
      MOP_GUARD(prefix_value->numel() == prefix_key->numel() && (rows ? rows->numel() == examples() : prefixes() == 1));
      for (i64 b = 0; b < examples(); ++b) MOP_GUARD(0 <= row_of(b) && row_of(b) < prefixes());
    }
    MOP_GUARD(!bias || bias->numel() == heads() * queries() * tokens());
    MOP_GUARD(!key_mask || key_mask->numel() == examples() * tokens());
    MOP_GUARD(!seed || seed->numel() == 1);
    for (const std::optional<Tensor>* same : {&prefix_key, &prefix_value, &bias})
      MOP_GUARD(!*same || (*same)->scalar_type() == query.scalar_type());
    MOP_GUARD(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type());
  }

  // The first element of head h of example b in a tensor (examples, tokens, heads, width) of so many tokens.
  i64 at(i64 b, i64 h, i64 count) const { return (b * count * heads() + h) * width(); }

  template <class T>
  AttentionHead<T> head(i64 b, i64 h) const {
    const i64 of_tokens = at(b, h, tokens()), of_prefix = (row_of(b) * heads() + h) * prefix() * width();
    const unsigned char* real = in<unsigned char>(key_mask);
    return {queries(),
            tokens(),
            prefix(),
            width(),
            heads() * width(),
            in<T>(query) + at(b, h, queries()),
            in<T>(key) + of_tokens,
            in<T>(value) + of_tokens,
            prefix_key ? in<T>(prefix_key) + of_prefix : nullptr,
            prefix_key ? in<T>(prefix_value) + of_prefix : nullptr,
            bias ? in<T>(bias) + h * queries() * tokens() : nullptr,
            real ? real + b * tokens() : nullptr,
            causal,
            T(scale),
            dropout_of(in<i64>(seed), dropout),
            (b * heads() + h) * queries()};
  }

  template <class T, class Body>
  void for_each_head(bool backward, const Body& body) const {
    const i64 scratch = attention_scratch<T>(prefix() + tokens(), width(), backward);
    for_each_task(examples() * heads(), [&](i64 task) {
      const i64 b = task / heads(), h = task % heads();
      body(b, h, head<T>(b, h), thread_scratch<T>(scratch));
    });
  }

  // The gradient of a prefix tensor, from one part [prefix, width] per head of an example.
  template <class T>
  Tensor sum_of_prefix(const Tensor& parts) const {
    const Tensor sum = empty_as(*prefix_key);
    const i64 size = prefix() * width();
    const T* from = in<T>(parts);
    T* to = out<T>(sum);
    for_each_task(prefixes() * heads(), [&](i64 task) {
      const i64 row = task / heads(), h = task % heads();
      T* at = to + task * size;
      std::fill_n(at, size, T(0));
      for (i64 b = 0; b < examples(); ++b) {
        if (row_of(b) != row) continue;
        const T* part = from + (b * heads() + h) * size;
        for (i64 k = 0; k < size; ++k) at[k] += part[k];
      }
    });
    return sum;
  }
};

template <class T>
std::vector<Tensor> backward(const Call& call, const Tensor& grad, const Tensor& lse, i64 needs) {
  std::optional<Tensor> query, key, value, prefix_key, prefix_value;
  if (needs & 1) query = empty_as(call.query);
  if (needs & 2) key = empty_as(call.key);
  if (needs & 4) value = empty_as(call.value);
  for (auto [bit, parts] : {std::pair(8, &prefix_key), std::pair(16, &prefix_value)})
    if (needs & bit) *parts = empty(grad, {call.examples(), call.heads(), call.prefix(), call.width()});
  const auto part = [](const std::optional<Tensor>& t, i64 at) { return t ? out<T>(*t) + at : nullptr; };
  call.for_each_head<T>(true, [&](i64 b, i64 h, const AttentionHead<T>& head, T* scratch) {
    const i64 task = b * call.heads() + h, of_prefix = task * call.prefix() * call.width();
    const i64 of_tokens = call.at(b, h, call.tokens());
    const T* of_out = static_cast<const T*>(grad.const_data_ptr()) + b * grad.stride(0) + h * grad.stride(2);
    kernels<T>().attention_backward(
        head,
        {of_out, in<T>(lse) + task * call.queries(), grad.stride(1), part(query, call.at(b, h, call.queries())),
         part(key, of_tokens), part(value, of_tokens), part(prefix_key, of_prefix), part(prefix_value, of_prefix)},
        scratch);
  });
  if (prefix_key) prefix_key = call.sum_of_prefix<T>(*prefix_key);
  if (prefix_value) prefix_value = call.sum_of_prefix<T>(*prefix_value);
  std::vector<Tensor> asked;
  for (const std::optional<Tensor>* made : {&query, &key, &value, &prefix_key, &prefix_value})
    if (*made) asked.push_back(**made);
  return asked;
}

}  // namespace

std::vector<Tensor> prefix_attention(Tensor query, Tensor key, Tensor value, std::optional<Tensor> prefix_key,
                                     std::optional<Tensor> prefix_value, std::optional<Tensor> rows,
                                     std::optional<Tensor> bias, std::optional<Tensor> key_mask,
                                     std::optional<Tensor> seed, bool causal, double scale, double dropout) {
  const Call call{query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed, causal, scale, dropout};
  call.check();
  const Tensor made = empty_as(query);
  const Tensor lse = empty(query, {call.examples(), call.heads(), call.queries()});
  by_dtype(query, [&](auto zero) {
    using T = decltype(zero);
    T *to = out<T>(made), *to_lse = out<T>(lse);
    call.for_each_head<T>(false, [&](i64 b, i64 h, const AttentionHead<T>& head, T* scratch) {
      kernels<T>().attention_forward(head, to + call.at(b, h, call.queries()),
                                     to_lse + (b * call.heads() + h) * call.queries(), scratch);
    });
  });
  return {made, lse};
}

std::vector<Tensor> prefix_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                              std::optional<Tensor> prefix_key, std::optional<Tensor> prefix_value,
                                              std::optional<Tensor> rows, std::optional<Tensor> bias,
                                              std::optional<Tensor> key_mask, std::optional<Tensor> seed, Tensor lse,
                                              bool causal, double scale, double dropout, i64 needs) {
  const Call call{query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed, causal, scale, dropout};
  call.check();
  MOP_GUARD(grad.dim() == 4 && grad.numel() == query.numel() && grad.scalar_type() == query.scalar_type());
  for (int dim = 0; dim < 4; ++dim) MOP_GUARD(grad.size(dim) == query.size(dim));
  MOP_GUARD(lse.numel() == call.examples() * call.heads() * call.queries());
  MOP_GUARD(!(needs & 24) || prefix_key);
  const Tensor rows_of_grad = grad.stride(3) == 1 ? grad : torch::stable::contiguous(grad);
  return by_dtype(query, [&](auto zero) { return backward<decltype(zero)>(call, rows_of_grad, lse, needs); });
}

}  // namespace mop
