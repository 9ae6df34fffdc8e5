// The forward of mop_ffn on the tensor cores, in a half precision. t, s and the hidden rows are rounded to it, as
// torch's operations, one per stage, round them. Sums are float.
#pragma once

#include "device_mma.h"
#include "mop_ffn_forward.cuh"

namespace mop::ffn {

// Elements of the rules of a map, padded with zeros to whole eights: rule_in [j, a] and rule_out [j, c].
MOP_BOTH i64 padded_rules(const Sides& d) { return i64(d.j()) * (odd_eights(d.g_in) + odd_eights(d.g_out)); }

// Counted in floats, as on the CUDA cores: eight zeros, then hidden rows [n, a, u], rules, t [j, n, u], s [j, n, v].
MOP_BOTH ForwardScratch tensor_scratch(const Sides& down, const Sides& up, const Tile& tile) {
  const auto floats = [](i64 elements) { return elements / 2; };
  const i64 down_rows = i64(tile.rows) * down.j(), up_rows = i64(tile.rows) * up.j();
  ForwardScratch at{};
  at.hidden = floats(8);
  at.rules = at.hidden + floats(i64(tile.rows) * up.g_in * odd_eights(up.loc_in));
  const i64 of_down = padded_rules(down), of_up = padded_rules(up);
  at.t = at.rules + floats(of_down > of_up ? of_down : of_up);
  at.down_s = at.t + floats(down_rows * odd_eights(down.loc_in));
  at.up_s = at.t + floats(up_rows * odd_eights(up.loc_in));
  const i64 down_end = at.down_s + floats(down_rows * odd_eights(down.loc_out));
  const i64 up_end = at.up_s + floats(up_rows * odd_eights(tile.v));
  at.add_steps(Way::tensor, down, up, tile, down_end > up_end ? down_end : up_end, 2);
  return at;
}

template <class T>
struct TensorBlock : ForwardBlock<T, Way::tensor> {
  using Base = ForwardBlock<T, Way::tensor>;
  using Base::bank, Base::buffer, Base::factors, Base::first_row, Base::p, Base::pair, Base::rows;

  MOP_DEVICE TensorBlock(const MopForward<T>& p, i64 item, float* scratch) : Base(p, item, scratch) {
    for (int k = thread_index(); k < 8; k += block_threads()) zeros()[k] = from_float<T>(0.f);
  }

  MOP_DEVICE T* at(i64 floats) const { return reinterpret_cast<T*>(Base::scratch + floats); }
  MOP_DEVICE T* zeros() const { return at(0); }
  MOP_DEVICE T* rule_in() const { return at(p.scratch.rules); }
  MOP_DEVICE T* rule_out(const Sides& d) const { return rule_in() + i64(d.j()) * odd_eights(d.g_in); }

  // From the buffer of the map's first step.
  MOP_DEVICE void make_rules(const Sides& d, const StepBuffer& in_step, int index) const {
    const T *const in = buffer(index) + in_step.rule_in, *const out = buffer(index) + in_step.rule_out;
    const int pitch_in = odd_eights(d.g_in), pitch_out = odd_eights(d.g_out);
    const Divisor<true> by_in(pitch_in), by_out(pitch_out), by_rank(d.rank);
    const T zero = from_float<T>(0.f);
    for (int k = thread_index(); k < d.j() * pitch_in; k += block_threads()) {
      const int j = by_in.quotient(k), a = k - j * pitch_in, i = by_rank.quotient(j);
      rule_in()[k] = a < d.g_in ? in[(i * d.g_in + a) * d.rank + j - i * d.rank] : zero;
    }
    for (int k = thread_index(); k < d.j() * pitch_out; k += block_threads()) {
      const int j = by_out.quotient(k), c = k - j * pitch_out;
      rule_out(d)[k] = c < d.g_out ? out[j * d.g_out + c] : zero;
    }
    sync_threads();
  }

  // t from x_of(n), rows over u, one per a
  template <class X>
  MOP_DEVICE void stage_1(const Sides& d, const X& x_of) const {
    const int pitch = odd_eights(d.loc_in), plane = rows * pitch;
    T* const t = at(p.scratch.t);
    warp_product<false>(
        rows, d.j(), d.loc_in, d.g_in, [&](int) { return Rows<T>{rule_in(), odd_eights(d.g_in)}; }, x_of, zeros(),
        [&](int n, int j, int u, float first, float second) {
          store_two(t + (j * plane + n * pitch + u), first, second);
        });
    sync_threads();
  }

  // s from t and the step's locals, [i, u, v]
  MOP_DEVICE void stage_2(const Sides& d, int width_v, const T* local, T* s) const {
    const int pitch = odd_eights(d.loc_in), pitch_v = odd_eights(width_v);
    const T* const t = at(p.scratch.t);
    const Divisor<true> by_rank(d.rank);
    warp_product<false>(
        d.j(), rows, width_v, d.loc_in, [&](int j) { return Rows<T>{t + j * rows * pitch, pitch}; },
        [&](int j) { return Rows<T>{local + by_rank.quotient(j) * d.loc_in * pitch_v, pitch_v}; }, zeros(),
        [&](int j, int n, int v, float first, float second) {
          store_two(s + ((j * rows + n) * pitch_v + v), first, second);
        });
    sync_threads();
  }

  // store(n, c, v, two of y without the bias)
  template <class Store>
  MOP_DEVICE void stage_3(const Sides& d, int width_v, const T* s, const Store& store) const {
    const int pitch_v = odd_eights(width_v);
    warp_product<true>(
        rows, d.g_out, width_v, d.j(), [&](int) { return Rows<T>{rule_out(d), odd_eights(d.g_out)}; },
        [&](int n) { return Rows<T>{s + n * pitch_v, rows * pitch_v}; }, zeros(), store);
  }

  MOP_DEVICE void down(int index, const Step&) const {
    const Sides &d = bank.down, &next = bank.up;
    const StepBuffer in_step = down_buffer(Way::tensor, d, p.tile);
    const T *const x = buffer(index), *const bias = factors(Step::kDown).bias == nullptr ? nullptr : x + in_step.bias;
    T *const h = at(p.scratch.hidden), *const s = at(p.scratch.down_s);
    make_rules(d, in_step, index);
    const int pitch = odd_eights(d.loc_in);
    stage_1(d, [&](int n) { return Rows<T>{x + n * d.g_in * pitch, pitch}; });
    stage_2(d, d.loc_out, x + in_step.local, s);
    const Divisor<true> by_u(next.loc_in);
    stage_3(d, d.loc_out, s, [&](int n, int c, int v, float first, float second) {
      const int column = c * d.loc_out + v, a = by_u.quotient(column);
      if (bias != nullptr) add_two(bias + column, first, second);
      store_two(h + (n * next.g_in + a) * odd_eights(next.loc_in) + column - a * next.loc_in,
                activated(bank.activation, first), activated(bank.activation, second));
    });
  }

  MOP_DEVICE void up(int index, const Step& step) const {
    const Sides& d = bank.up;
    const StepBuffer in_step = up_buffer(Way::tensor, d, p.tile);
    const T *const own = buffer(index), *const h = at(p.scratch.hidden);
    const T* const bias = factors(step.map).bias == nullptr ? nullptr : own + in_step.bias;
    T* const s = at(p.scratch.up_s);
    if (step.first_of_map) {
      make_rules(d, in_step, index);
      const int pitch = odd_eights(d.loc_in);
      stage_1(d, [&](int n) { return Rows<T>{h + n * d.g_in * pitch, pitch}; });
    }
    stage_2(d, step.width, own + in_step.local, s);
    T* const y = p.y[step.map] + (pair.index * bank.rows + first_row) * d.out() + step.first;
    stage_3(d, step.width, s, [&](int n, int c, int v, float first, float second) {
      if (bias != nullptr) add_two(bias + (c * step.width + v), first, second);
      store_two(y + (n * d.out() + c * d.loc_out + v), first, second);
    });
  }
};

}  // namespace mop::ffn
