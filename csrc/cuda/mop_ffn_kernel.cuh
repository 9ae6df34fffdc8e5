// mop_ffn forward: y = up(activation(down(x))) for all (layer, expert) pairs and all up maps in one launch.
//
// A block computes a tile of rows of one pair: the hidden rows, which stay in its scratch memory, then its share of the
// up maps. It goes by steps (mop_ffn_stages.cuh has the letters and the stages): a chunk of the down map's u, or a
// chunk of an up map's v. The fast kernel copies what a step reads, as it lies, to one of two buffers in shared memory
// while the step before computes, so that a block waits once for the GPU's memory. Scratch is float, whatever the dtype
// of the tensors, in shared memory; where not even one hidden row fits (d_mid of some thousands), it is memory of the
// GPU.
//
// docs/performance_gpu.md has the cost of the paper's bank.
#pragma once

#include "device_async.h"
#include "mop_ffn_stages.cuh"

namespace mop::ffn {

// Where a step's operands lie in a buffer, in elements; of the rules and the bias only what comes with the step.
struct StepBuffer {
  i64 local, bias, rule_in, rule_out, elements;

  MOP_BOTH StepBuffer(const Sides& d, i64 x, i64 locals, i64 biases)
      : local(x),
        bias(local + locals),
        rule_in(bias + biases),
        rule_out(rule_in + padded(d.j() * d.g_in)),
        elements(rule_out + padded(d.j() * d.g_out)) {}
};

// x [n, a, u] comes first.
MOP_BOTH StepBuffer down_buffer(const Sides& down, const Tile& tile) {
  return {down, i64(tile.rows) * down.g_in * tile.u, i64(down.terms) * tile.u * down.loc_out, down.out()};
}

MOP_BOTH StepBuffer up_buffer(const Sides& up, const Tile& tile) {
  return {up, 0, i64(up.terms) * up.loc_in * tile.v, i64(up.g_out) * tile.v};
}

// Offsets of the buffers in scratch memory, and how many floats it has; `staged` bytes an element of the two step
// buffers, 0 where there are none.
struct ForwardScratch {
  i64 hidden, rules, t, down_s, up_s, steps, step_floats, floats;
};

MOP_BOTH ForwardScratch forward_scratch(const Sides& down, const Sides& up, const Tile& tile, int staged) {
  ForwardScratch at{};
  at.rules = i64(tile.rows) * HiddenRows(up).row;
  at.t = at.rules + (rules_floats(down) > rules_floats(up) ? rules_floats(down) : rules_floats(up));
  const i64 down_rows = i64(tile.rows) * down.j(), up_rows = i64(tile.rows) * up.j();
  at.down_s = at.t + down_rows * odd_fours(tile.u);
  at.up_s = at.t + up_rows * odd_fours(up.loc_in);
  const i64 down_end = at.down_s + down_rows * odd_fours(down.loc_out);
  const i64 up_end = at.up_s + up_rows * odd_fours(tile.v);
  at.steps = down_end > up_end ? down_end : up_end;
  const i64 down_elements = down_buffer(down, tile).elements, up_elements = up_buffer(up, tile).elements;
  at.step_floats = div_up((down_elements > up_elements ? down_elements : up_elements) * staged, i64(16)) * 4;
  at.floats = at.steps + 2 * at.step_floats;
  return at;
}

template <class T>
struct MopForward {
  Bank<T> bank;
  T* y[kMaxMaps];
  Tile tile;
  ForwardScratch scratch;
  float* workspace;   // scratch of all blocks, or null where it is shared memory
  i64 tiles, splits;  // of the rows; of the up maps' chunks over blocks
};

// To `to`, dense: `rows` rows of `width` elements, by fours.
template <class T>
MOP_DEVICE void copy_rows(const T* from, i64 stride, int rows, int width, T* to) {
  const int packs = width / 4;
  const Divisor<true> by_packs(packs);
  for (int k = thread_index(); k < rows * packs; k += block_threads()) {
    const int row = by_packs.quotient(k);
    copy_four(to + i64(k) * 4, from + row * stride + (k - row * packs) * 4);
  }
}

// The same for a row of any size that starts anywhere; what is not whole fours is read at once.
template <class T>
MOP_DEVICE void copy_any(const T* from, int size, T* to) {
  if (size % 4 == 0 && reinterpret_cast<uintptr_t>(from) % (4 * sizeof(T)) == 0) return copy_rows(from, 0, 1, size, to);
  for (int k = thread_index(); k < size; k += block_threads()) to[k] = from[k];
}

// A chunk of a map: of u of the down map, or of v of an up map.
struct Step {
  int map, first, width;  // kDown or the up map
  bool first_of_map;      // in this block: its rules come with it

  static constexpr int kDown = -1;
};

// A block's view of one item.
template <class T, bool kFast>
struct ForwardBlock {
  const MopForward<T>& p;
  const Bank<T>& bank;
  const Pair<T> pair;
  const i64 first_row;
  const int rows, down_steps, first_chunk, steps;
  float* const scratch;

  MOP_DEVICE ForwardBlock(const MopForward<T>& p, i64 item, float* scratch)
      : p(p),
        bank(p.bank),
        pair(p.bank, item / p.tiles / p.splits),
        first_row(item % p.tiles * p.tile.rows),
        rows(int(least(i64(p.tile.rows), bank.rows - first_row))),
        down_steps(div_up(bank.down.loc_in, p.tile.u)),
        first_chunk(int(work() * (item / p.tiles % p.splits) / p.splits)),
        steps(down_steps + int(work() * (item / p.tiles % p.splits + 1) / p.splits) - first_chunk),
        scratch(scratch) {}

  MOP_DEVICE int chunks() const { return div_up(bank.up.loc_out, p.tile.v); }  // of an up map
  MOP_DEVICE i64 work() const { return i64(bank.maps) * chunks(); }

  MOP_DEVICE Step step(int index) const {
    const bool down = index < down_steps;
    const int chunk = first_chunk + index - down_steps, map = chunk / chunks();
    const int first = down ? index * p.tile.u : (chunk - map * chunks()) * p.tile.v;
    const int width = down ? least(p.tile.u, bank.down.loc_in - first) : least(p.tile.v, bank.up.loc_out - first);
    return {down ? Step::kDown : map, first, width, first == 0 || index == down_steps};
  }

  MOP_DEVICE Factors<T> factors(int map) const {
    return map == Step::kDown ? pair.of(bank, bank.down_factors, bank.down_groups)
                              : pair.of(bank, bank.up_factors[map], bank.up_groups);
  }
  MOP_DEVICE const T* x() const { return pair.of(bank, bank.x, bank.x_group) + first_row * bank.down.in(); }
  MOP_DEVICE T* buffer(int index) const {
    return reinterpret_cast<T*>(scratch + p.scratch.steps + index % 2 * p.scratch.step_floats);
  }

  // Starts the copies of a step to its buffer.
  MOP_DEVICE void copy(int index) const {
    const Step s = step(index);
    const bool down = s.map == Step::kDown;
    const Sides& d = down ? bank.down : bank.up;
    const StepBuffer at = down ? down_buffer(d, p.tile) : up_buffer(d, p.tile);
    const Factors<T> from = factors(s.map);
    T* const to = buffer(index);
    if (down) {
      copy_rows(x() + s.first, d.loc_in, rows * d.g_in, s.width, to);
      copy_rows(from.local + i64(s.first) * d.loc_out, i64(d.loc_in) * d.loc_out, d.terms, s.width * d.loc_out,
                to + at.local);
      if (from.bias != nullptr && index == down_steps - 1) copy_rows(from.bias, 0, 1, d.out(), to + at.bias);
    } else {
      copy_rows(from.local + s.first, d.loc_out, d.terms * d.loc_in, s.width, to + at.local);
      if (from.bias != nullptr) copy_rows(from.bias + s.first, d.loc_out, d.g_out, s.width, to + at.bias);
    }
    if (!s.first_of_map) return;
    copy_any(from.rule_in, d.j() * d.g_in, to + at.rule_in);
    copy_any(from.rule_out, d.j() * d.g_out, to + at.rule_out);
  }

  // The rules of a map as floats, from the buffer of its first step or from their place; made once.
  MOP_DEVICE Rules rules(const Sides& d, const Factors<T>& from, const StepBuffer& at, int index, bool copied) const {
    float* const to = scratch + p.scratch.rules;
    if (copied) return {to, to + i64(d.j()) * odd_fours(d.g_in)};
    Factors<T> raw = from;
    if constexpr (kFast) raw.rule_in = buffer(index) + at.rule_in, raw.rule_out = buffer(index) + at.rule_out;
    const Rules made = copy_rules<kFast>(d, raw, to);
    sync_threads();
    return made;
  }

  MOP_DEVICE void down(int index, const Step& step) const {
    const Sides& d = bank.down;
    const HiddenRows hidden(bank.up);
    const Factors<T> from = factors(Step::kDown);
    const StepBuffer at = down_buffer(d, p.tile);
    float *const h = scratch + p.scratch.hidden, *const t = scratch + p.scratch.t,
                 *const s = scratch + p.scratch.down_s;
    const Rules own = rules(d, from, at, index, !step.first_of_map);
    Operand<T, kFast> x_rows{x() + step.first, d.loc_in};
    i64 x_row = d.in();
    Locals<T, kFast> local = in_place<kFast>(d, from.local + i64(step.first) * d.loc_out);
    const T* bias = from.bias;
    if constexpr (kFast) {
      x_rows = {buffer(index), step.width}, x_row = i64(d.g_in) * step.width;
      local = {buffer(index) + at.local, i64(step.width) * d.loc_out, d.loc_out};
      if (bias != nullptr) bias = buffer(index) + at.bias;
    }
    stage_1<kFast, kFast>(
        d, rows, step.width, own.in, [&](int n) { return Operand<T, kFast>{x_rows.data + n * x_row, x_rows.stride}; },
        t);
    sync_threads();
    stage_2<kFast>(d, rows, step.width, d.loc_out, t, local, step.first > 0, s);
    if (index != down_steps - 1) return;
    sync_threads();
    stage_3<kFast, false>(d, rows, d.loc_out, own.out, s, [&](int n, int c, int v, const Pack<float>& sum) {
      const int column = c * d.loc_out + v, valid = d.loc_out - v;
      Pack<float> y = with_bias<kFast>(sum, bias, column, valid);
      MOP_UNROLL
      for (int e = 0; e < 4; ++e) y.at[e] = activated(bank.activation, y.at[e]);
      if constexpr (kFast) {
        store16(h + i64(n) * hidden.row + column, y);  // loc_in of the up maps is whole fours, so hidden rows are dense
      } else {
        for (int e = 0; e < least(4, valid); ++e) h[hidden.at(n, column + e)] = y.at[e];
      }
    });
  }

  MOP_DEVICE void up(int index, const Step& step) const {
    const Sides& d = bank.up;
    const HiddenRows hidden(d);
    const Factors<T> from = factors(step.map);
    const StepBuffer at = up_buffer(d, p.tile);
    float *const h = scratch + p.scratch.hidden, *const t = scratch + p.scratch.t, *const s = scratch + p.scratch.up_s;
    const Rules own = rules(d, from, at, index, !step.first_of_map);
    if (step.first_of_map) {
      stage_1<kFast, false>(
          d, rows, d.loc_in, own.in, [&](int n) { return Scratch{h + i64(n) * hidden.row, hidden.pitch}; }, t);
      sync_threads();
    }
    Locals<T, kFast> local = in_place<kFast>(d, from.local + step.first);
    const T* bias = from.bias == nullptr ? nullptr : from.bias + step.first;
    int bias_stride = d.loc_out;
    if constexpr (kFast) {
      local = {buffer(index) + at.local, i64(d.loc_in) * step.width, step.width};
      if (bias != nullptr) bias = buffer(index) + at.bias;
      bias_stride = step.width;
    }
    stage_2<kFast>(d, rows, d.loc_in, step.width, t, local, false, s);
    sync_threads();
    T* const y = p.y[step.map] + (pair.index * bank.rows + first_row) * d.out() + step.first;
    stage_3<kFast, kFast>(d, rows, step.width, own.out, s, [&](int n, int c, int v, const Pack<float>& sum) {
      const int valid = step.width - v;
      store_some<kFast>(y + i64(n) * d.out() + c * d.loc_out + v,
                        with_bias<kFast>(sum, bias, c * bias_stride + v, valid), valid);
    });
  }
};

// Grid: tiles fastest, then splits, pairs; or fewer blocks, which take several in turn.
template <class T, bool kFast>
MOP_KERNEL MOP_BLOCKS(kThreads, kFast ? 2 : 1) mop_ffn_kernel(MopForward<T> p) {
  for (i64 item = block_index(); item < p.bank.pairs() * p.splits * p.tiles; item += num_blocks()) {
    if (p.bank.experts != nullptr) check_expert(p.bank, item / p.tiles / p.splits % p.bank.places);
    const ForwardBlock<T, kFast> block(p, item, scratch_of<kFast>(p.workspace, p.scratch.floats));
    if constexpr (kFast) {
      block.copy(0);
      commit_copies();
    }
    for (int index = 0; index < block.steps; ++index) {
      if constexpr (kFast) {
        if (index + 1 < block.steps) block.copy(index + 1);
        commit_copies();
        wait_for_copies<1>();
      }
      sync_threads();
      const Step step = block.step(index);
      if (step.map == Step::kDown)
        block.down(index, step);
      else
        block.up(index, step);
      sync_threads();
    }
  }
}

}  // namespace mop::ffn
