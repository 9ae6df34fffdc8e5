// The forward of mop_ffn on the CUDA cores. Scratch is float for every dtype of the tensors. It is shared memory, or
// the GPU's memory if not even one hidden row fits (d_mid of some thousands).
#pragma once

#include "mop_ffn_forward.cuh"

namespace mop::ffn {

template <class T, Way kWay>
struct CoresBlock : ForwardBlock<T, kWay> {
  using Base = ForwardBlock<T, kWay>;
  using Base::bank, Base::buffer, Base::down_steps, Base::factors, Base::first_row, Base::kFast, Base::p, Base::pair,
      Base::rows, Base::scratch, Base::x;
  using Base::Base;

  // Returns the rules of a map as floats, from the buffer of its first step or from memory; converted once.
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
    const StepBuffer at = down_buffer(kWay, d, p.tile);
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
    const StepBuffer at = up_buffer(kWay, d, p.tile);
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

}  // namespace mop::ffn
