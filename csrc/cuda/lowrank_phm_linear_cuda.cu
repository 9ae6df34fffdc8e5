// lowrank_phm_linear: y = x W + bias with W = sum_i (rule_in[i] @ rule_out[i]) (x) local[i]; W is never built. Few rows
// take one launch (lowrank_phm_linear_kernel.cuh). More rows, and backward, take one product per stage. t and s go
// through memory as [i, n, r, .], so that stage 2 is one product per term, of rank*rows rows:
//
//   1. t[i, n, r, u] = sum_a x[n, a, u] rule_in[i, a, r]         rank*terms*in multiply-adds per row
//   2. s[i, n, r, v] = sum_u t[i, n, r, u] local[i, u, v]        rank*terms*loc_in*loc_out
//   3. y[n, c, v] = sum_ir s[i, n, r, v] rule_out[i, r, c]       rank*terms*out
//
// Backward recomputes t and s where they are needed. Each gradient is one more product, with the gradients gs and gt of
// s and t. Forward moves rows*(in + out + 2*rank*terms*(loc_in + loc_out)) numbers, backward some three times as many.
#include "../ops.h"
#include "lowrank_phm_linear_kernel.cuh"
#include "mop_ffn_call.h"
#include "products.h"

namespace mop {
namespace {

constexpr i64 kFewRows = 64;  // with more rows the tiles of the one launch would read the locals too often

// Returns the tile of the one launch: with so few v that no multiprocessor is idle, or without rows if nothing fits.
ffn::Tile tile_of(const Chip& chip, const ffn::Sides& d, i64 rows) {
  const i64 room = std::min(chip.room(1), kLeastShared);
  for (int most = 8; most > 0; most /= 2) {
    const int height = int(std::min<i64>(most, rows));
    const i64 chunks = div_up(chip.multiprocessors, div_up(rows, i64(height)));
    const int wanted = std::max(8, ffn::padded(int(div_up(i64(d.loc_out), chunks))));
    const ffn::Tile tile{height, 0, std::min(wanted, ffn::padded(d.loc_out))};
    const auto fits = [&](int u) { return lowrank_floats(d, {tile.rows, u, tile.v}) <= room / 4; };
    const int u = ffn::widest_chunk(d.loc_in, std::min(8, ffn::padded(d.loc_in)), fits);
    if (u > 0) return {tile.rows, u, tile.v};
  }
  return {};
}

// Computes y if one launch can, and returns whether it did.
template <class T>
bool in_one_launch(const PhmDims& dims, i64 rows, const Tensor& x, const ffn::Factors<T>& factors, const Tensor& y) {
  if (rows == 0 || rows > kFewRows || std::max({dims.in(), dims.out(), dims.j()}) >= i64(1) << 24) return false;
  const ffn::Sides d{int(dims.terms), int(dims.rank),   int(dims.g_in),
                     int(dims.g_out), int(dims.loc_in), int(dims.loc_out)};
  const Launch launch(x);
  const ffn::Tile tile = tile_of(launch.chip(), d, rows);
  if (tile.rows == 0) return false;
  const i64 tiles = div_up(rows, i64(tile.rows)), chunks = div_up(d.loc_out, tile.v);
  const LowRankForward<T> p{d, factors, in<T>(x), out<T>(y), rows, tiles, tile};
  const bool fast = (d.loc_in | d.loc_out) % 4 == 0 && ffn::starts_whole(p.x) && ffn::starts_whole(factors) &&
                    ffn::has_bounded_tasks(tile.rows, std::max(d.in(), d.out()));
  launch("lowrank_phm_linear", fast ? lowrank_phm_linear_kernel<T, true> : lowrank_phm_linear_kernel<T, false>,
         tiles * chunks, ffn::kThreads, lowrank_floats(d, tile) * sizeof(float), p);
  return true;
}

// The products of one call. x and y, also as gradients, are viewed with rows (n, u) or (n, v) and one plane per a or c.
// t and s have one plane per (i, r).
template <class T>
class Stages {
 public:
  Stages(const PhmDims& dims, i64 rows, const Tensor& like, const Tensor& rule_in, const Tensor& rule_out,
         const Tensor& local)
      : d(dims),
        rows_(rows),
        like_(like),
        launch_(like),
        rule_in_(in<T>(rule_in)),
        rule_out_(in<T>(rule_out)),
        local_(in<T>(local)) {}

  // t from x
  Tensor stage_1(const T* x) const {
    const Tensor t = empty(like_, {d.terms, rows_, d.rank, d.loc_in});
    Matmul<T> p = product(x, rule_in_, out<T>(t));
    p.m = axis(rows_, d.loc_in, {d.in(), 1}, {d.rank * d.loc_in, 1});
    p.n = axis(d.terms, d.rank, {d.g_in * d.rank, 1}, {plane(d.loc_in), d.loc_in});
    p.k = axis(d.g_in, d.loc_in, d.rank);
    run("lowrank_phm_linear, stage 1", p, t.numel());
    return t;
  }

  // s from t
  Tensor stage_2(const T* t) const {
    const Tensor s = empty(like_, {d.terms, rows_, d.rank, d.loc_out});
    Matmul<T> p = product(t, local_, out<T>(s));
    p.batch = axis(d.terms, plane(d.loc_in), d.loc_in * d.loc_out, plane(d.loc_out));
    p.m = axis(rows_ * d.rank, d.loc_in, d.loc_out);
    p.n = axis(d.loc_out, 1, 1);
    p.k = axis(d.loc_in, 1, d.loc_out);
    run("lowrank_phm_linear, stage 2", p, s.numel());
    return s;
  }

  // y from s
  void stage_3(const T* s, const T* bias, T* y) const {
    Matmul<T> p = product(s, rule_out_, y);
    p.bias = bias;
    p.m = axis(rows_, d.loc_out, {d.rank * d.loc_out, 1}, {d.out(), 1}, {0, 1});
    p.n = axis(d.g_out, 1, d.loc_out, d.loc_out);
    p.k = axis(d.terms, d.rank, {plane(d.loc_out), d.loc_out}, {d.rank * d.g_out, d.g_out});
    run("lowrank_phm_linear, stage 3", p, rows_ * d.out());
  }

  // gs from gy
  Tensor grad_s(const T* gy) const {
    const Tensor gs = empty(like_, {d.terms, rows_, d.rank, d.loc_out});
    Matmul<T> p = product(gy, rule_out_, out<T>(gs));
    p.m = axis(rows_, d.loc_out, {d.out(), 1}, {d.rank * d.loc_out, 1});
    p.n = axis(d.terms, d.rank, {d.rank * d.g_out, d.g_out}, {plane(d.loc_out), d.loc_out});
    p.k = axis(d.g_out, d.loc_out, 1);
    run("lowrank_phm_linear_backward, stage 3", p, gs.numel());
    return gs;
  }

  // gt from gs
  Tensor grad_t(const T* gs) const {
    const Tensor gt = empty(like_, {d.terms, rows_, d.rank, d.loc_in});
    Matmul<T> p = product(gs, local_, out<T>(gt));
    p.batch = axis(d.terms, plane(d.loc_out), d.loc_in * d.loc_out, plane(d.loc_in));
    p.m = axis(rows_ * d.rank, d.loc_out, d.loc_in);
    p.n = axis(d.loc_in, d.loc_out, 1);
    p.k = axis(d.loc_out, 1, 1);
    run("lowrank_phm_linear_backward, stage 2", p, gt.numel());
    return gt;
  }

  void grad_x(const T* gt, T* gx) const {
    Matmul<T> p = product(gt, rule_in_, gx);
    p.m = axis(rows_, d.loc_in, {d.rank * d.loc_in, 1}, {d.in(), 1});
    p.n = axis(d.g_in, d.rank, d.loc_in);
    p.k = axis(d.terms, d.rank, {plane(d.loc_in), d.loc_in}, {d.g_in * d.rank, 1});
    run("lowrank_phm_linear_backward, stage 1", p, rows_ * d.in());
  }

  void grad_rule_in(const T* x, const T* gt, T* grad) const {
    Matmul<T> p = product(x, gt, grad);
    p.m = axis(d.g_in, d.loc_in, d.rank);
    p.n = axis(d.terms, d.rank, {plane(d.loc_in), d.loc_in}, {d.g_in * d.rank, 1});
    p.k = axis(rows_, d.loc_in, {d.in(), 1}, {d.rank * d.loc_in, 1});
    run("lowrank_phm_linear_backward, rule_in", p, d.j() * d.g_in);
  }

  void grad_rule_out(const T* s, const T* gy, T* grad) const {
    Matmul<T> p = product(s, gy, grad);
    p.m = axis(d.terms, d.rank, {plane(d.loc_out), d.loc_out}, {d.rank * d.g_out, d.g_out});
    p.n = axis(d.g_out, d.loc_out, 1);
    p.k = axis(rows_, d.loc_out, {d.rank * d.loc_out, 1}, {d.out(), 1});
    run("lowrank_phm_linear_backward, rule_out", p, d.j() * d.g_out);
  }

  void grad_local(const T* t, const T* gs, T* grad) const {
    Matmul<T> p = product(t, gs, grad);
    p.batch = axis(d.terms, plane(d.loc_in), plane(d.loc_out), d.loc_in * d.loc_out);
    p.m = axis(d.loc_in, 1, d.loc_out);
    p.n = axis(d.loc_out, 1, 1);
    p.k = axis(rows_ * d.rank, d.loc_in, d.loc_out);
    run("lowrank_phm_linear_backward, local", p, d.local_size());
  }

  void grad_bias(const T* gy, T* grad) const { sum_parts(launch_, like_, gy, 1, rows_, d.out(), grad); }

 private:
  static Matmul<T> product(const T* a, const T* b, T* c) {
    Matmul<T> p{};
    p.a = a, p.b = b, p.c = c;
    p.batch = axis(1, 0, 0);
    return p;
  }
  void run(const char* name, const Matmul<T>& p, i64 size) const { matmul(launch_, like_, name, p, size); }
  i64 plane(i64 width) const { return rows_ * d.rank * width; }  // of a term, in t and s

  const PhmDims d;
  const i64 rows_;
  const Tensor& like_;
  const Launch launch_;
  const T *rule_in_, *rule_out_, *local_;
};

}  // namespace

Tensor lowrank_phm_linear(Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, std::optional<Tensor> bias) {
  const PhmDims d = linear_dims(x, rule_in, rule_out, local);
  MOP_GUARD(fits(bias, d.out()));
  const Tensor y = empty_rows(x, d.out());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const i64 rows = x.numel() / d.in();
    const ffn::Factors<T> factors{in<T>(rule_in), in<T>(rule_out), in<T>(local), in<T>(bias)};
    if (in_one_launch(d, rows, x, factors, y)) return;
    const Stages<T> stages(d, rows, x, rule_in, rule_out, local);
    const Tensor t = stages.stage_1(in<T>(x)), s = stages.stage_2(in<T>(t));
    stages.stage_3(in<T>(s), in<T>(bias), out<T>(y));
  });
  return y;
}

std::vector<Tensor> lowrank_phm_linear_backward(Tensor grad, Tensor x, Tensor rule_in, Tensor rule_out, Tensor local,
                                                i64 mask) {
  const PhmDims d = linear_dims(x, rule_in, rule_out, local);
  const i64 rows = x.numel() / d.in();
  MOP_GUARD(grad.numel() == rows * d.out());
  grad = as_contiguous(grad);
  const Tensor* const inputs[4] = {&x, &rule_in, &rule_out, &local};
  std::vector<Tensor> asked;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Stages<T> stages(d, rows, x, rule_in, rule_out, local);
    const T *from = in<T>(x), *gy = in<T>(grad);
    T* to[5] = {};
    for (int k = 0; k < 5; ++k)
      if (mask >> k & 1) {
        asked.push_back(k < 4 ? empty_as(*inputs[k]) : empty(x, {d.out()}));
        to[k] = out<T>(asked.back());
      }
    const bool want_t = to[2] || to[3], want_gt = to[0] || to[1];
    Tensor t, gs, gt;
    if (want_t) t = stages.stage_1(from);
    if (to[2]) stages.grad_rule_out(in<T>(stages.stage_2(in<T>(t))), gy, to[2]);
    if (to[3] || want_gt) gs = stages.grad_s(gy);
    if (to[3]) stages.grad_local(in<T>(t), in<T>(gs), to[3]);
    if (want_gt) gt = stages.grad_t(in<T>(gs));
    if (to[0]) stages.grad_x(in<T>(gt), to[0]);
    if (to[1]) stages.grad_rule_in(from, in<T>(gt), to[1]);
    if (to[4]) stages.grad_bias(gy, to[4]);
  });
  return asked;
}

}  // namespace mop
