// mop_ffn backward, first of two launches: hidden rows recomputed, then the gradients of each (pair, part of its rows).
//
// A block takes a tile of rows. It computes the gradients of the up maps (mop_ffn_gradients.cuh) and adds their dx.
// This sum, times the derivative of the activation, is dy of the down map, whose gradients come last. A block writes a
// gradient directly if no other block shares it. Of all other gradients it writes its part, in float, and
// mop_ffn_sums_kernel.cuh sums the parts in order. Gradients that are not asked for are not computed.
//
// Cost of the paper's bank, all gradients except that of x: 368 M multiply-adds; in float32, in 240 blocks of 10 rows,
// 65 MB read through L2 and 29 MB of parts written: an estimated 30 to 50 us on an H200, of which 13 are arithmetic at
// the full rate. Not measured.
#pragma once

#include "mop_ffn_gradients.cuh"

namespace mop::ffn {

// pre: the result of the down map, [n, c, v] with rows of padded(loc_out), later its gradient. h and dh: HiddenRows.
// room: scratch of dots() or of a copy of a local.
struct BackwardScratch {
  i64 pre, h, dh, rules, room, t, down_dt, down_s, up_dt, up_s, floats;
};

MOP_BOTH i64 most(i64 a, i64 b) { return a > b ? a : b; }

MOP_BOTH BackwardScratch backward_scratch(const Sides& down, const Sides& up, const Tile& tile, int threads) {
  const i64 rows = tile.rows, down_rows = rows * down.j(), up_rows = rows * up.j();
  BackwardScratch at{};
  at.h = rows * down.g_out * padded(down.loc_out);
  at.dh = at.h + rows * HiddenRows(up).row;
  at.rules = at.dh + rows * HiddenRows(up).row;
  at.room = at.rules + most(rules_floats(down), rules_floats(up));
  const i64 down_local = i64(down.terms) * tile.u * odd_fours(down.loc_out);
  const i64 up_local = i64(up.terms) * up.loc_in * odd_fours(tile.v);
  at.t = at.room + most((dots_room(threads) + 3) / 4 * 4, most(down_local, up_local));
  at.down_dt = at.t + down_rows * odd_fours(tile.u);
  at.down_s = at.down_dt + down_rows * odd_fours(tile.u);
  at.up_dt = at.t + up_rows * odd_fours(up.loc_in);
  at.up_s = at.up_dt + up_rows * odd_fours(up.loc_in);
  at.floats = most(at.down_s + down_rows * odd_fours(down.loc_out), at.up_s + up_rows * odd_fours(tile.v));
  return at;
}

template <class T>
struct MopBackward {
  Bank<T> bank;
  const T* dy[kMaxMaps];
  Gradient<T> dx;
  FactorGradients<T> d_down, d_up[kMaxMaps];
  bool needs_hidden, to_down;  // whether anything reads the hidden rows; whether x or the down map asks
  Tile tile;
  BackwardScratch scratch;
  float* workspace;  // as in MopForward
  i64 tiles, parts;  // of the rows of a pair: parts are runs of tiles, a block takes one
};

// A block's view of the call.
template <class T, bool kFast>
struct BackwardBlock {
  const MopBackward<T>& p;
  const Bank<T>& bank;
  const Pair<T> pair;
  const i64 part;
  const HiddenRows hidden;
  float *const pre, *const h, *const dh, *const rules, *const room, *const t;
  i64 first_row;
  int rows;
  bool add;  // whether this is not the first tile of the part

  MOP_DEVICE BackwardBlock(const MopBackward<T>& p, i64 item, float* scratch)
      : p(p),
        bank(p.bank),
        pair(p.bank, item / p.parts),
        part(item % p.parts),
        hidden(p.bank.up),
        pre(scratch + p.scratch.pre),
        h(scratch + p.scratch.h),
        dh(scratch + p.scratch.dh),
        rules(scratch + p.scratch.rules),
        room(scratch + p.scratch.room),
        t(scratch + p.scratch.t) {}

  MOP_DEVICE Place<T> place(const Gradient<T>& gradient, const Group& group) const {
    float* const to = gradient.parts;
    return {to == nullptr ? nullptr : to + (pair.index * p.parts + part) * group.size,
            gradient.result == nullptr ? nullptr
                                       : gradient.result + group.offset(pair.layer, pair.expert, bank.num_experts),
            add};
  }
  MOP_DEVICE FactorPlaces<T> places(const FactorGradients<T>& of, const FactorGroups& groups) const {
    return {place(of.rule_in, groups.rule_in), place(of.rule_out, groups.rule_out), place(of.local, groups.local),
            place(of.bias, groups.bias)};
  }

  MOP_DEVICE int pre_pitch() const { return padded(bank.down.loc_out); }
  MOP_DEVICE i64 pre_at(int n, int column) const {
    const int v = bank.down.loc_out;
    return (i64(n) * bank.down.g_out + column / v) * pre_pitch() + column % v;
  }
  // function(n, column) for every hidden number of the tile
  template <class Function>
  MOP_DEVICE void for_hidden(const Function& function) const {
    for (int k = thread_index(); k < rows * bank.down.out(); k += block_threads())
      function(k / bank.down.out(), k % bank.down.out());
  }

  MOP_DEVICE const T* x_rows() const { return pair.of(bank, bank.x, bank.x_group) + first_row * bank.down.in(); }

  // pre, h, and zeros for dh
  MOP_DEVICE void forward() const {
    const Sides& d = bank.down;
    const Factors<T> factors = pair.of(bank, bank.down_factors, bank.down_groups);
    float* const s = t + (p.scratch.down_s - p.scratch.t);
    const Rules own = copy_rules<kFast>(d, factors, rules);
    first_stages<kFast, false>(d, p.tile.u, rows, d.loc_out, own, x_rows(), factors.local, t, s);
    stage_3<kFast, false>(d, rows, d.loc_out, own.out, s, [&](int n, int c, int v, const Pack<float>& sum) {
      store16(pre + (i64(n) * d.g_out + c) * pre_pitch() + v,
              with_bias<kFast>(sum, factors.bias, i64(c) * d.loc_out + v, d.loc_out - v));
    });
    sync_threads();
    for_hidden([&](int n, int column) {
      const i64 at = hidden.at(n, column);
      h[at] = activated(bank.activation, pre[pre_at(n, column)]);
      dh[at] = 0.f;
    });
  }

  MOP_DEVICE void up_map(int map) const {
    const Sides& d = bank.up;
    const FactorPlaces<T> to = places(p.d_up[map], bank.up_groups);
    const T* const dy = p.dy[map] + (pair.index * bank.rows + first_row) * d.out();
    const auto dy_from = [&](int v) {
      return [dy, v, d](int n) { return Operand<T, kFast>{dy + i64(n) * d.out() + v, d.loc_out}; };
    };
    if (to.bias) bias_gradient<kFast>(d, rows, dy_from(0), to.bias);
    const bool needs_dt = to.rule_in || p.to_down, needs_ds = needs_dt || to.local;
    if (!needs_ds && !to.rule_out) return;

    float* const dt = t + (p.scratch.up_dt - p.scratch.t);
    float* const s = t + (p.scratch.up_s - p.scratch.t);  // then ds
    const Factors<T> factors = pair.of(bank, bank.up_factors[map], bank.up_groups);
    const auto h_of = [&](int n) { return Scratch{h + i64(n) * hidden.row, hidden.pitch}; };
    sync_threads();
    const Rules own = copy_rules<kFast>(d, factors, rules);
    sync_threads();
    if (to.rule_out || to.local) stage_1<kFast, false>(d, rows, d.loc_in, own.in, h_of, t);
    for (int v = 0; v < d.loc_out; v += p.tile.v) {
      const int width_v = least(p.tile.v, d.loc_out - v);
      const T* const local = factors.local + v;
      sync_threads();
      if (to.rule_out) {
        stage_2<kFast>(d, rows, d.loc_in, width_v, t, in_place<kFast>(d, local), false, s);
        sync_threads();
        rule_out_gradient<kFast>(d, rows, width_v, s, dy_from(v), room, v > 0 ? to.rule_out.adding() : to.rule_out);
      }
      if (!needs_ds) continue;
      stage_3_back<kFast>(d, rows, width_v, own.out, dy_from(v), s);
      if (needs_dt) copy_local<kFast>(d, d.loc_in, width_v, local, room);
      sync_threads();
      if (to.local) local_gradient<kFast>(d, rows, 0, d.loc_in, v, width_v, t, s, to.local);
      if (needs_dt) stage_2_back<kFast>(d, rows, d.loc_in, width_v, s, room, v > 0, dt);
    }
    if (!needs_dt) return;
    sync_threads();
    if (to.rule_in) rule_in_gradient<kFast>(d, rows, d.loc_in, dt, h_of, room, to.rule_in);
    if (p.to_down)
      stage_1_back<kFast>(d, rows, d.loc_in, own.in, dt, [&](int n, int a, int u, const Pack<float>& sum) {
        float* const at = dh + i64(n) * hidden.row + a * hidden.pitch + u;
        store16(at, sum_of(load16(at), sum));
      });
  }

  MOP_DEVICE void down_map() const {
    const Sides& d = bank.down;
    const FactorPlaces<T> to = places(p.d_down, bank.down_groups);
    const bool needs_dt = to.rule_in || p.dx.asked(), needs_ds = needs_dt || to.local;
    const Factors<T> factors = pair.of(bank, bank.down_factors, bank.down_groups);
    const T* const x = x_rows();
    const auto dy_of = [&](int n) { return Scratch{pre + i64(n) * d.g_out * pre_pitch(), pre_pitch()}; };
    for_hidden([&](int n, int column) {
      float* const at = pre + pre_at(n, column);
      *at = dh[hidden.at(n, column)] * slope(bank.activation, *at);
    });
    const Rules own = copy_rules<kFast>(d, factors, rules);
    sync_threads();
    if (to.bias) bias_gradient<kFast>(d, rows, dy_of, to.bias);
    float* const dt = t + (p.scratch.down_dt - p.scratch.t);
    float* const s = t + (p.scratch.down_s - p.scratch.t);  // then ds
    if (to.rule_out) {
      first_stages<kFast, false>(d, p.tile.u, rows, d.loc_out, own, x, factors.local, t, s);
      rule_out_gradient<kFast>(d, rows, d.loc_out, s, dy_of, room, to.rule_out);
    }
    if (!needs_ds) return;
    stage_3_back<kFast>(d, rows, d.loc_out, own.out, dy_of, s);
    for (int u = 0; u < d.loc_in; u += p.tile.u) {
      const int width = least(p.tile.u, d.loc_in - u);
      const auto x_of = [&](int n) { return Operand<T, kFast>{x + i64(n) * d.in() + u, d.loc_in}; };
      sync_threads();
      if (to.local) stage_1<kFast, false>(d, rows, width, own.in, x_of, t);
      if (needs_dt) copy_local<kFast>(d, width, d.loc_out, factors.local + i64(u) * d.loc_out, room);
      sync_threads();
      if (to.local) local_gradient<kFast>(d, rows, u, width, 0, d.loc_out, t, s, to.local);
      if (!needs_dt) continue;
      stage_2_back<kFast>(d, rows, width, d.loc_out, s, room, false, dt);
      sync_threads();
      if (to.rule_in) rule_in_gradient<kFast>(d, rows, width, dt, x_of, room, u > 0 ? to.rule_in.adding() : to.rule_in);
      if (p.dx.asked()) x_gradient(width, u, own.in, dt);
    }
  }

  MOP_DEVICE void x_gradient(int width, int u0, const float* rule_in, const float* dt) const {
    const Sides& d = bank.down;
    const i64 pair_rows = (pair.index * bank.rows + first_row) * d.in();
    const i64 own_rows = bank.x_group.offset(pair.layer, pair.expert, bank.num_experts) + first_row * d.in();
    const Place<T> to{p.dx.parts == nullptr ? nullptr : p.dx.parts + pair_rows,
                      p.dx.result == nullptr ? nullptr : p.dx.result + own_rows, false};
    stage_1_back<kFast>(d, rows, width, rule_in, dt, [&](int n, int a, int u, const Pack<float>& sum) {
      to.template put<kFast>(i64(n) * d.in() + a * d.loc_in + u0 + u, sum, width - u);
    });
  }
};

// One block per place. It stops before the gradients are written. Inside the kernel below the check would make the
// compiler spill, so it has its own launch. Calls without experts do not make this launch.
template <class T>
MOP_KERNEL mop_ffn_experts_kernel(Bank<T> bank) {
  check_expert(bank, block_index());
  check_that_expert_is_first(bank, block_index());
}

// Grid: parts fastest, then pairs; or fewer blocks, which take several in turn.
template <class T, bool kFast>
MOP_KERNEL MOP_BLOCKS(kThreads, kFast ? 2 : 1) mop_ffn_backward_kernel(MopBackward<T> p) {
  float* const scratch = scratch_of<kFast>(p.workspace, p.scratch.floats);
  for (i64 item = block_index(); item < p.bank.pairs() * p.parts; item += num_blocks()) {
    BackwardBlock<T, kFast> block(p, item, scratch);
    const i64 begin = p.tiles * block.part / p.parts, end = p.tiles * (block.part + 1) / p.parts;
    for (i64 tile = begin; tile < end; ++tile) {
      block.first_row = tile * p.tile.rows;
      block.rows = int(least(i64(p.tile.rows), p.bank.rows - block.first_row));
      block.add = tile > begin;
      if (p.needs_hidden) block.forward();
      for (int map = 0; map < p.bank.maps; ++map) block.up_map(map);
      sync_threads();
      if (p.to_down) block.down_map();
      sync_threads();
    }
  }
}

}  // namespace mop::ffn
