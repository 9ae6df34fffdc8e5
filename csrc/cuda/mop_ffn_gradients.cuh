// The parts of the backward kernel of mop_ffn: the places of its gradients, and the products of one tile of rows and
// one map. With dy of a map and its t, s (mop_ffn_stages.cuh)
//   drule_out[j, c] = sum_nv s dy      ds[j, n, v] = sum_c rule_out dy      dlocal[i, u, v] = sum_rn t ds
//   dt[j, n, u] = sum_v ds local       drule_in[j, a] = sum_nu dt x         dx[n, a, u] = sum_j rule_in dt
#pragma once

#include "mop_ffn_stages.cuh"

namespace mop::ffn {

// The destination of a gradient; `to` is null if it is not asked for. Parts are [pairs, parts, size] floats. A gradient
// that no other block shares goes directly into its tensor, in the dtype of the tensor.
template <class T>
struct Gradient {
  float* parts;
  T* result;

  MOP_BOTH bool asked() const { return parts != nullptr || result != nullptr; }
};

template <class T>
struct FactorGradients {
  Gradient<T> rule_in, rule_out, local, bias;
};

// The place of a block in a gradient. The block writes there for its first tile of rows, and adds for later tiles.
template <class T>
struct Place {
  float* part;
  T* result;
  bool add;

  MOP_DEVICE explicit operator bool() const { return part != nullptr || result != nullptr; }
  MOP_DEVICE Place adding() const { return {part, result, true}; }
  MOP_DEVICE void put(i64 at, float value) const {
    if (result != nullptr)
      result[at] = from_float<T>(add ? to_float(result[at]) + value : value);
    else
      part[at] = add ? part[at] + value : value;
  }
  template <bool kFast>
  MOP_DEVICE void put(i64 at, const Pack<float>& value, int valid) const {
    if (result != nullptr)
      put_in<kFast>(result + at, value, valid);
    else
      put_in<kFast>(part + at, value, valid);
  }

 private:
  template <bool kFast, class To>
  MOP_DEVICE void put_in(To* to, const Pack<float>& value, int valid) const {
    store_some<kFast>(to, add ? sum_of(load_some<kFast>(to, valid), value) : value, valid);
  }
};

template <class T>
struct FactorPlaces {
  Place<T> rule_in, rule_out, local, bias;
};

// ds for `width_v` of v; dy_of(n) gives the rows over v of row n, one per c.
template <bool kFast, class DY>
MOP_DEVICE void stage_3_back(const Sides& d, int rows, int width_v, const float* rule_out, const DY& dy_of, float* ds) {
  const int pitch = odd_fours(width_v);
  product<true, false, kSide<kFast>>(
      rows, d.j(), width_v, d.g_out, [&](int) { return Scratch{rule_out, padded(d.g_out)}; }, dy_of,
      [&](int n, int j, int v, const Pack<float>& sum) { store16(ds + i64(j * rows + n) * pitch + v, sum); });
}

// Copies `width` of u and `width_v` of v of a local to scratch memory, [i, u, v]. `local` starts at the first of both.
template <bool kFast, class T>
MOP_DEVICE void copy_local(const Sides& d, int width, int width_v, const T* local, float* to) {
  const int pitch = odd_fours(width_v), packs = div_up(width_v, 4);
  for (int k = thread_index(); k < d.terms * width * packs; k += block_threads()) {
    const int v = k % packs * 4, u = k / packs % width, i = k / packs / width;
    const T* const from = local + (i64(i) * d.loc_in + u) * d.loc_out + v;
    store16(to + i64(i * width + u) * pitch + v, load_some<kFast>(from, width_v - v));
  }
}

// dt (+)= ds local
template <bool kFast>
MOP_DEVICE void stage_2_back(const Sides& d, int rows, int width, int width_v, const float* ds, const float* local,
                             bool add, float* dt) {
  const int pitch = odd_fours(width), pitch_v = odd_fours(width_v);
  product<true, true, kLocal<kFast>>(
      d.j(), rows, width, width_v, [&](int j) { return Scratch{ds + i64(j) * rows * pitch_v, pitch_v}; },
      [&](int j) { return Scratch{local + i64(j / d.rank) * width * pitch_v, pitch_v}; },
      [&](int j, int n, int u, const Pack<float>& sum) {
        float* const at = dt + i64(j * rows + n) * pitch + u;
        store16(at, add ? sum_of(load16(at), sum) : sum);
      });
}

// store(n, a, u, four of dx)
template <bool kFast, class Store>
MOP_DEVICE void stage_1_back(const Sides& d, int rows, int width, const float* rule_in, const float* dt,
                             const Store& store) {
  const int pitch = odd_fours(width);
  product<false, false, kSide<kFast>>(
      rows, d.g_in, width, d.j(), [&](int) { return Scratch{rule_in, odd_fours(d.g_in)}; },
      [&](int n) { return Scratch{dt + i64(n) * pitch, rows * pitch}; }, store);
}

// dlocal of `width` of u from `u0`, and of `width_v` of v from `v0`
template <bool kFast, class T>
MOP_DEVICE void local_gradient(const Sides& d, int rows, int u0, int width, int v0, int width_v, const float* t,
                               const float* ds, const Place<T>& to) {
  const int pitch = odd_fours(width), pitch_v = odd_fours(width_v), term = d.rank * rows;
  product<false, false, kSide<kFast>>(
      d.terms, width, width_v, term, [&](int i) { return Scratch{t + i64(i) * term * pitch, pitch}; },
      [&](int i) { return Scratch{ds + i64(i) * term * pitch_v, pitch_v}; },
      [&](int i, int u, int v, const Pack<float>& sum) {
        to.template put<kFast>((i64(i) * d.loc_in + u0 + u) * d.loc_out + v0 + v, sum, width_v - v);
      });
}

// Threads meet before it returns, as in rule_in_gradient.
template <bool kFast, class T, class DY>
MOP_DEVICE void rule_out_gradient(const Sides& d, int rows, int width_v, const float* s, const DY& dy_of, float* room,
                                  const Place<T>& to) {
  const int pitch = odd_fours(width_v);
  dots<kLocal<kFast>>(
      d.j(), d.g_out, rows, width_v, [&](int n) { return Scratch{s + i64(n) * pitch, rows * pitch}; }, dy_of, room,
      [&](int j, int c, float sum) { to.put(i64(j) * d.g_out + c, sum); });
}

template <bool kFast, class T, class X>
MOP_DEVICE void rule_in_gradient(const Sides& d, int rows, int width, const float* dt, const X& x_of, float* room,
                                 const Place<T>& to) {
  const int pitch = odd_fours(width);
  dots<kLocal<kFast>>(
      d.j(), d.g_in, rows, width, [&](int n) { return Scratch{dt + i64(n) * pitch, rows * pitch}; }, x_of, room,
      [&](int j, int a, float sum) { to.put((i64(j / d.rank) * d.g_in + a) * d.rank + j % d.rank, sum); });
}

// dbias; dy_of(n) as in stage_3_back
template <bool kFast, class T, class DY>
MOP_DEVICE void bias_gradient(const Sides& d, int rows, const DY& dy_of, const Place<T>& to) {
  const int packs = div_up(d.loc_out, 4);
  for (int k = thread_index(); k < d.g_out * packs; k += block_threads()) {
    const int c = k / packs, v = k % packs * 4;
    Pack<float> sum{};
    for (int n = 0; n < rows; ++n) {
      const auto dy = dy_of(n);
      sum = sum_of(sum, load_some<kFast>(dy.data + c * dy.stride + v, d.loc_out - v));
    }
    to.template put<kFast>(i64(c) * d.loc_out + v, sum, d.loc_out - v);
  }
}

}  // namespace mop::ffn
