// lowrank_phm_linear in one launch, for few rows: the stages of mop_ffn_stages.cuh, t and s in shared memory.
//
// A block computes a tile of rows and a chunk of v. Stage 1 is recomputed for each chunk, and each tile of rows reads
// the locals once. Cost of 40 rows, 768 -> 128 with 16 terms of rank 1 in 10 blocks: 0.8 M multiply-adds and 0.5 M more
// for the second chunk, 0.2 MB of factors and x. The launch itself takes most of the time.
#pragma once

#include "mop_ffn_stages.cuh"

namespace mop {

template <class T>
struct LowRankForward {
  ffn::Sides dims;
  ffn::Factors<T> factors;
  const T* x;
  T* y;
  i64 rows, tiles;
  ffn::Tile tile;
};

// Floats of shared memory: the rules, t, s.
MOP_BOTH i64 lowrank_floats(const ffn::Sides& d, const ffn::Tile& tile) {
  return ffn::rules_floats(d) + i64(tile.rows) * d.j() * (ffn::odd_fours(tile.u) + ffn::odd_fours(tile.v));
}

// Grid: tiles of rows fastest, then chunks of v.
template <class T, bool kFast>
MOP_KERNEL lowrank_phm_linear_kernel(LowRankForward<T> p) {
  const ffn::Sides& d = p.dims;
  const i64 first_row = block_index() % p.tiles * p.tile.rows;
  const int rows = int(least(i64(p.tile.rows), p.rows - first_row));
  const int first_v = int(block_index() / p.tiles) * p.tile.v, width_v = least(p.tile.v, d.loc_out - first_v);
  float* const t = shared_memory<float>() + ffn::rules_floats(d);
  float* const s = t + i64(p.tile.rows) * d.j() * ffn::odd_fours(p.tile.u);
  const T* const x = p.x + first_row * d.in();
  T* const y = p.y + first_row * d.out();

  const ffn::Rules rules = ffn::copy_rules<kFast>(d, p.factors, shared_memory<float>());
  ffn::first_stages<kFast, kFast>(d, p.tile.u, rows, width_v, rules, x, p.factors.local + first_v, t, s);
  ffn::stage_3<kFast, kFast>(d, rows, width_v, rules.out, s, [&](int n, int c, int v, const Pack<float>& sum) {
    const i64 column = i64(c) * d.loc_out + first_v + v;
    const int valid = width_v - v;
    ffn::store_some<kFast>(y + n * d.out() + column, ffn::with_bias<kFast>(sum, p.factors.bias, column, valid), valid);
  });
}

}  // namespace mop
