// The forward of mop_ffn, on the CUDA cores and on the tensor cores: how a block goes through its work.
//
// A block computes a tile of rows of one pair: the hidden rows, which stay in its scratch memory, then its share of the
// up maps. A step is a chunk of u of the down map, or a chunk of v of an up map (mop_ffn_stages.cuh has the letters and
// the stages). The fast kernels copy the operands of a step, unchanged, to one of two buffers in shared memory while
// the previous step computes. So a block waits only once for the GPU's memory.
#pragma once

#include "device_async.h"
#include "mop_ffn_stages.cuh"

namespace mop::ffn {

// How the kernel is compiled: for any sizes; as kFast of mop_ffn_stages.cuh; or fast on the tensor cores, for half
// precisions with whole eights in loc_in and loc_out.
enum class Way { any, fast, tensor };

// An odd number of eights: rows of a half precision that ldmatrix reads start in different banks.
MOP_BOTH int odd_eights(int size) { return ((size + 7) / 8 | 1) * 8; }

// Elements from row to row of `width` in a step buffer.
MOP_BOTH int pitch_of(Way way, int width) { return way == Way::tensor ? odd_eights(width) : width; }

// The offsets of the operands of a step in a buffer, in elements; rules and bias only if they come with the step.
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
MOP_BOTH StepBuffer down_buffer(Way way, const Sides& down, const Tile& tile) {
  return {down, i64(tile.rows) * down.g_in * pitch_of(way, tile.u),
          i64(down.terms) * tile.u * pitch_of(way, down.loc_out), down.out()};
}

MOP_BOTH StepBuffer up_buffer(Way way, const Sides& up, const Tile& tile) {
  return {up, 0, i64(up.terms) * up.loc_in * pitch_of(way, tile.v), i64(up.g_out) * tile.v};
}

// Offsets of the buffers in scratch memory, and its size in floats.
struct ForwardScratch {
  i64 hidden, rules, t, down_s, up_s, steps, step_floats, floats;

  // Adds the two step buffers behind `end`.
  MOP_BOTH void add_steps(Way way, const Sides& down, const Sides& up, const Tile& tile, i64 end, int element_bytes) {
    steps = floats = end;
    if (way == Way::any) return;
    const auto floats_of = [&](const StepBuffer& step) { return div_up(step.elements * element_bytes, i64(16)) * 4; };
    const i64 of_down = floats_of(down_buffer(way, down, tile)), of_up = floats_of(up_buffer(way, up, tile));
    step_floats = of_down > of_up ? of_down : of_up;
    floats += step_floats + (way == Way::tensor ? of_up : step_floats);  // there all of the down map is the first step
  }
};

// On the CUDA cores everything except the step buffers is float.
MOP_BOTH ForwardScratch forward_scratch(Way way, const Sides& down, const Sides& up, const Tile& tile,
                                        int element_bytes) {
  ForwardScratch at{};
  at.rules = i64(tile.rows) * HiddenRows(up).row;
  at.t = at.rules + (rules_floats(down) > rules_floats(up) ? rules_floats(down) : rules_floats(up));
  const i64 down_rows = i64(tile.rows) * down.j(), up_rows = i64(tile.rows) * up.j();
  at.down_s = at.t + down_rows * odd_fours(tile.u);
  at.up_s = at.t + up_rows * odd_fours(up.loc_in);
  const i64 down_end = at.down_s + down_rows * odd_fours(down.loc_out);
  const i64 up_end = at.up_s + up_rows * odd_fours(tile.v);
  at.add_steps(way, down, up, tile, down_end > up_end ? down_end : up_end, element_bytes);
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

// Copies `rows` rows of `width` elements, `count` at once, to rows with a stride of `pitch`.
template <int count, class T>
MOP_DEVICE void copy_rows(const T* from, i64 stride, int rows, int width, T* to, int pitch) {
  const int packs = width / count;
  const Divisor<true> by_packs(packs);
  for (int k = thread_index(); k < rows * packs; k += block_threads()) {
    const int row = by_packs.quotient(k), column = (k - row * packs) * count;
    copy_async<count>(to + row * pitch + column, from + row * stride + column);
  }
}

// Copies a row of any size that starts anywhere. Elements that are not whole fours are read directly.
template <class T>
MOP_DEVICE void copy_any(const T* from, int size, T* to) {
  if (size % 4 == 0 && reinterpret_cast<uintptr_t>(from) % (4 * sizeof(T)) == 0)
    return copy_rows<4>(from, 0, 1, size, to, size);
  for (int k = thread_index(); k < size; k += block_threads()) to[k] = from[k];
}

// A chunk of a map: of u of the down map, or of v of an up map.
struct Step {
  int map, first, width;  // kDown or the up map
  bool first_of_map;      // in this block: its rules come with it

  static constexpr int kDown = -1;
};

// A block's view of one item.
template <class T, Way kWay>
struct ForwardBlock {
  static constexpr bool kFast = kWay != Way::any;

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
    const StepBuffer at = down ? down_buffer(kWay, d, p.tile) : up_buffer(kWay, d, p.tile);
    const Factors<T> from = factors(s.map);
    T* const to = buffer(index);
    constexpr int count = kWay == Way::tensor ? 8 : 4;
    const int pitch = pitch_of(kWay, down ? d.loc_out : s.width);
    if (down) {
      copy_rows<count>(x() + s.first, d.loc_in, rows * d.g_in, s.width, to, pitch_of(kWay, s.width));
      if constexpr (kWay == Way::tensor)  // which takes all u at once
        copy_rows<count>(from.local, d.loc_out, d.terms * d.loc_in, d.loc_out, to + at.local, pitch);
      else
        copy_rows<count>(from.local + i64(s.first) * d.loc_out, i64(d.loc_in) * d.loc_out, d.terms, s.width * d.loc_out,
                         to + at.local, s.width * d.loc_out);
      if (from.bias != nullptr && index == down_steps - 1)
        copy_rows<count>(from.bias, 0, 1, d.out(), to + at.bias, d.out());
    } else {
      copy_rows<count>(from.local + s.first, d.loc_out, d.terms * d.loc_in, s.width, to + at.local, pitch);
      if (from.bias != nullptr)
        copy_rows<count>(from.bias + s.first, d.loc_out, d.g_out, s.width, to + at.bias, s.width);
    }
    if (!s.first_of_map) return;
    copy_any(from.rule_in, d.j() * d.g_in, to + at.rule_in);
    copy_any(from.rule_out, d.j() * d.g_out, to + at.rule_out);
  }
};

}  // namespace mop::ffn
