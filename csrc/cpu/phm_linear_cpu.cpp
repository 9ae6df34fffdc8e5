// phm_linear: y = x W + bias with W = sum_i rule[i] (x) local[i]. A full rule saves no multiply-adds over a dense W,
// only the building of W. Many rows: W is built once, then multiplied by torch. Few rows: the factors are applied
// without W, local first or rule first, by the cheaper way.
#include <array>

#include "cpu_ops.h"

namespace mop {
namespace {

// The cost model counts multiply-adds, with two corrections. A dense product runs near the machine's rate, and the
// short products of the other ways at about half of it (kShort). An element of W, or of its gradient, that is written
// and read again costs as much as kMemory multiply-adds.
constexpr i64 kShort = 2, kMemory = 64;
// A task of local first or rule first takes some rows. Where the rows are few and the locals are wide, it takes some
// columns of the locals for all rows instead: each local is read once, and one row is several tasks.
constexpr i64 kFewRows = 16, kRows = 8, kColumns = 48;
// Many rows: larger tasks, since each copies the locals once (tiles.h).
constexpr i64 kManyRows = 512, kLargeRows = 16;
// Backward sums the gradients of the factors over a fixed number of chunks of rows, in blocks of rows.
constexpr i64 kMaxChunks = 8, kRowsAChunk = 64, kLeastBackward = 24;

Tensor linear(const Tensor& x, const Tensor& transposed_weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(transposed_weight),
                                    torch::stable::detail::from(bias)};
  MOP_GUARD(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Returns the gradients of x, rule and local (mask bits 0 to 2), by tasks of one term and one chunk of the rows.
std::vector<Tensor> rule_first_backward(const PhmDims& d, const Tensor& grad_rows, const Tensor& x, const Tensor& rule,
                                        const Tensor& local, i64 mask) {
  const i64 rows = grad_rows.size(0);
  const i64 chunks = std::max<i64>(1, std::min(kMaxChunks, rows / kRowsAChunk));
  const SumOfParts of_x(mask & 1, x, d.terms, x.sizes()), of_rule(mask & 2, x, chunks, rule.sizes()),
      of_local(mask & 4, x, chunks, local.sizes());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const i64 rule_size = d.g_in * d.g_out, local_size = d.loc_in * d.loc_out;
    const T *from = in<T>(x), *from_grad = in<T>(grad_rows), *rules = in<T>(rule), *locals = in<T>(local);
    const i64 block = block_rows(rows, full_rule_backward_scratch(d, 1) * sizeof(T), kLeastBackward);
    for_each_task(d.terms * chunks, [&](i64 task) {
      const i64 i = task / chunks, chunk = task % chunks;
      const i64 begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
      T* const scratch = thread_scratch<T>(full_rule_backward_scratch(d, std::min(block, rows)));
      for (i64 n = begin; n < end || n == begin; n += block) {  // without rows: once, to write the zeros
        const FullRuleBackward<T> unit{d,
                                       rules + i * rule_size,
                                       locals + i * local_size,
                                       std::min(block, end - n),
                                       from + n * d.in(),
                                       from_grad + n * d.out(),
                                       of_x.at<T>(i, n * d.in()),
                                       of_rule.at<T>(chunk, i * rule_size),
                                       of_local.at<T>(chunk, i * local_size),
                                       n > begin};
        kernels<T>().rule_first_backward(unit, scratch);
      }
    });
  });
  std::vector<Tensor> asked;
  for (const SumOfParts* sum : {&of_x, &of_rule, &of_local}) sum->finish(asked);
  return asked;
}

}  // namespace

ForwardPlan plan_phm_linear(i64 rows, const PhmDims& d) {
  return {(d.terms + rows + kMemory) * d.in() * d.out(),
          kShort * rows * d.terms * (d.in() * d.loc_out + d.g_in * d.out()),
          kShort * rows * d.terms * (d.g_out * d.in() + d.loc_in * d.out())};
}

// The costs of all gradients: W and its gradient, built and read; or t recomputed, and the gradients of t, local, rule,
// x.
BackwardPlan plan_phm_linear_backward(i64 rows, const PhmDims& d) {
  return {(3 * d.terms + 2 * rows + 2 * kMemory) * d.in() * d.out(),
          kShort * rows * d.terms * (3 * d.g_out * d.in() + 2 * d.loc_in * d.out())};
}

Tensor phm_linear(Tensor x, Tensor rule, Tensor local, std::optional<Tensor> bias) {
  const PhmDims d = weight_dims(rule, local);
  MOP_GUARD(rule.dim() == 3 && x.dim() > 0 && x.size(x.dim() - 1) == d.in() && fits(bias, d.out()));
  const i64 rows = x.numel() / d.in();
  const ForwardPlan plan = plan_phm_linear(rows, d);
  if (plan.weight_once <= std::min(plan.local_first, plan.rule_first)) {
    const Tensor y = linear(x, torch::stable::transpose(phm_weight(rule, local), 0, 1), bias);
    MOP_GUARD(y.scalar_type() == x.scalar_type());  // autocast would have cast it
    return y;
  }
  Tensor y = empty_rows(x, d.out());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const auto unit = plan.local_first < plan.rule_first ? kernels<T>().local_first : kernels<T>().rule_first;
    const T *from = in<T>(x), *rules = in<T>(rule), *locals = in<T>(local), *biases = in<T>(bias);
    T* to = out<T>(y);
    const bool by_columns = rows <= kFewRows && d.loc_out > kColumns;
    const i64 block = by_columns ? rows : rows < kManyRows ? kRows : kLargeRows;
    const i64 breadth = by_columns ? kColumns : d.loc_out;
    const i64 across = (d.loc_out + breadth - 1) / breadth, down = rows == 0 ? 0 : (rows + block - 1) / block;
    for_each_task(down * across, [&](i64 task) {
      const i64 n = task / across * block, height = std::min(block, rows - n);
      const i64 column = task % across * breadth, columns = std::min(breadth, d.loc_out - column);
      unit({d, rules, locals, biases, height, column, columns, from + n * d.in(), to + n * d.out()},
           thread_scratch<T>(full_rule_scratch(d, height, columns)));
    });
  });
  return y;
}

std::vector<Tensor> phm_linear_backward(Tensor grad, Tensor x, Tensor rule, Tensor local, i64 mask) {
  const PhmDims d = weight_dims(rule, local);
  MOP_GUARD(rule.dim() == 3 && x.size(x.dim() - 1) == d.in() && grad.size(grad.dim() - 1) == d.out());
  const i64 rows = x.numel() / d.in();
  const Tensor grad_rows = as_contiguous(as_rows(grad, rows, d.out()));
  const BackwardPlan plan = plan_phm_linear_backward(rows, d);
  std::vector<Tensor> asked;
  if (mask & 7 && plan.rule_first < plan.weight_once) {
    asked = rule_first_backward(d, grad_rows, x, rule, local, mask & 7);
  } else {
    if (mask & 1) {
      const Tensor grad_x = torch::stable::matmul(grad_rows, torch::stable::transpose(phm_weight(rule, local), 0, 1));
      asked.push_back(viewed(grad_x, x.sizes()));
    }
    if (mask & 6) {
      const Tensor x_rows = viewed(x, {rows, d.in()});
      const Tensor grad_weight = torch::stable::matmul(torch::stable::transpose(x_rows, 0, 1), grad_rows);
      for (Tensor& factor : phm_weight_backward(grad_weight, rule, local, mask >> 1 & 3)) asked.push_back(factor);
    }
  }
  if (mask & 8) asked.push_back(column_sums(grad_rows));
  return asked;
}

}  // namespace mop
