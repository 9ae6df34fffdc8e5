// Shared by the forward and backward kernels of mop_ffn: the tensors of a call as a Bank, and the stages of a map.
//
// Letters as in reference.py: n row; j = (term i, rank r); a, c sides of the rule; u, v sides of the local. A map is
//   1. t[j, n, u] = sum_a rule_in[j, a] x[n, a, u]   2. s[j, n, v] = sum_u t[j, n, u] local[i, u, v]
//   3. y[n, c, v] = sum_j rule_out[j, c] s[j, n, v] + bias[c, v]
#pragma once

#include "../activation.h"
#include "mop_ffn_products.cuh"

namespace mop::ffn {

constexpr int kThreads = 256;  // of a block
constexpr int kMaxMaps = 20;   // of a launch: their pointers are parameters

struct Sides {  // of a map
  int terms, rank, g_in, g_out, loc_in, loc_out;

  MOP_BOTH int j() const { return terms * rank; }
  MOP_BOTH int in() const { return g_in * loc_in; }
  MOP_BOTH int out() const { return g_out * loc_out; }
};

// The group dims that a tensor has in full, and the elements of one group.
struct Group {
  bool layers, experts;
  i64 size;

  MOP_BOTH i64 offset(i64 layer, i64 expert, i64 num_experts) const {
    return ((layers ? layer : 0) * (experts ? num_experts : 1) + (experts ? expert : 0)) * size;
  }
};

template <class T>
struct Factors {
  const T *rule_in, *rule_out, *local, *bias;  // bias may be null
};

struct FactorGroups {
  Group rule_in, rule_out, local, bias;
};

// The tensors that forward and backward read.
template <class T>
struct Bank {
  Sides down, up;
  Activation activation;
  const T* x;
  Group x_group;
  Factors<T> down_factors, up_factors[kMaxMaps];
  FactorGroups down_groups, up_groups;
  const i64* experts;  // the expert at each place of the output, or null: all, in order
  int maps;
  i64 layers, places, num_experts, rows;

  MOP_BOTH i64 pairs() const { return layers * places; }
};

// A tile of rows, with the chunks of u of the down map and of v of the up maps.
struct Tile {
  int rows, u, v;
};

// The pair of a block, and its part of each tensor.
template <class T>
struct Pair {
  i64 index, layer, expert;

  MOP_DEVICE Pair(const Bank<T>& bank, i64 index)
      : index(index),
        layer(index / bank.places),
        expert(bank.experts == nullptr ? index % bank.places : bank.experts[index % bank.places]) {}

  MOP_DEVICE const T* of(const Bank<T>& bank, const T* tensor, const Group& group) const {
    return tensor == nullptr ? nullptr : tensor + group.offset(layer, expert, bank.num_experts);
  }
  MOP_DEVICE Factors<T> of(const Bank<T>& bank, const Factors<T>& factors, const FactorGroups& groups) const {
    return {of(bank, factors.rule_in, groups.rule_in), of(bank, factors.rule_out, groups.rule_out),
            of(bank, factors.local, groups.local), of(bank, factors.bias, groups.bias)};
  }
};

// Stops if the expert at a place does not exist. All threads look.
template <class T>
MOP_DEVICE void check_expert(const Bank<T>& bank, i64 place) {
  const i64 expert = bank.experts[place];
  if (expert < 0 || expert >= bank.num_experts) stop("experts must lie in 0..num_experts - 1");
}

// Stops if the expert is at an earlier place, too: two blocks would write its gradients.
template <class T>
MOP_DEVICE void check_that_expert_is_first(const Bank<T>& bank, i64 place) {
  MOP_UNROLL_BY(1)
  for (i64 k = thread_index(); k < place; k += block_threads())
    if (bank.experts[k] == bank.experts[place]) stop("experts must be distinct");
}

// The kernels are compiled twice. kFast: scratch is shared memory, every loc_in and loc_out is whole fours, and every
// tensor starts at a whole four, so that everything is read and written by fours. Otherwise scratch may be anywhere,
// elements are read one by one, and sizes are arbitrary. kBySize: sums over g_in or j (with rank 1, terms) of usual
// sizes are compiled separately. Compiling takes long, so this is done only where such sums are much of the work.
template <bool kFast>
constexpr int kLocal = kFast ? kFours : kSingles;
template <bool kFast>
constexpr int kSide = kFast ? kFoursAndRest : kSingles;

// Scratch rows of the rules of a map: rule_in [j, a], of which lanes read several j, and rule_out [j, c].
MOP_BOTH i64 rules_floats(const Sides& d) { return i64(d.j()) * (odd_fours(d.g_in) + padded(d.g_out)); }

struct Rules {
  float *in, *out;
};

template <bool kFast, class T>
MOP_DEVICE Rules copy_rules(const Sides& d, const Factors<T>& from, float* to) {
  const Rules rules{to, to + i64(d.j()) * odd_fours(d.g_in)};
  const Divisor<kFast> by_rank(d.rank), by_g_in(d.g_in), by_g_out(d.g_out);
  for (int k = thread_index(); k < d.j() * d.g_in; k += block_threads()) {  // as they lie: i, a, r
    const int ia = by_rank.quotient(k), r = k - ia * d.rank, i = by_g_in.quotient(ia), a = ia - i * d.g_in;
    rules.in[(i * d.rank + r) * odd_fours(d.g_in) + a] = to_float(from.rule_in[k]);
  }
  for (int k = thread_index(); k < d.j() * d.g_out; k += block_threads()) {
    const int j = by_g_out.quotient(k);
    rules.out[j * padded(d.g_out) + k - j * d.g_out] = to_float(from.rule_out[k]);
  }
  return rules;
}

// t for `width` of u; x_of(n) gives the rows over u of row n, one per a. Rows of t are odd_fours(width) long.
template <bool kFast, bool kBySize, class X>
MOP_DEVICE void stage_1(const Sides& d, int rows, int width, const float* rule_in, const X& x_of, float* t) {
  const int pitch = odd_fours(width);
  by_size<kBySize>(d.g_in, [&](auto g_in) {
    product<true, false, kFast ? decltype(g_in)::value : kSingles>(
        rows, d.j(), width, d.g_in, [&](int) { return Scratch{rule_in, odd_fours(d.g_in)}; }, x_of,
        [&](int n, int j, int u, const Pack<float>& sum) { store16(t + i64(j * rows + n) * pitch + u, sum); });
  });
}

// A chunk of the locals of a map: per term, rows over v, one per u.
template <class T, bool kPacked>
struct Locals {
  const T* data;
  i64 term, stride;
};

template <bool kFast, class T>
MOP_DEVICE Locals<T, kFast> in_place(const Sides& d, const T* local) {
  return {local, i64(d.loc_in) * d.loc_out, d.loc_out};
}

// s (+)= t local for `width` of u and `width_v` of v. A sum that continues from s has the same bits as one unbroken
// sum, so the size of the chunks does not change results.
template <bool kFast, class T>
MOP_DEVICE void stage_2(const Sides& d, int rows, int width, int width_v, const float* t, const Locals<T, kFast>& local,
                        bool add, float* s) {
  const int pitch = odd_fours(width), pitch_v = odd_fours(width_v);
  const Divisor<kFast> by_rank(d.rank);
  const auto at = [&](int j, int n, int v) { return s + i64(j * rows + n) * pitch_v + v; };
  product<true, false, kLocal<kFast>>(
      d.j(), rows, width_v, width, [&](int j) { return Scratch{t + i64(j) * rows * pitch, pitch}; },
      [&](int j) { return Operand<T, kFast>{local.data + by_rank.quotient(j) * local.term, local.stride}; },
      [&](int j, int n, int v, const Pack<float>& sum) { store16(at(j, n, v), sum); },
      [&](int j, int n, int v, int valid_rows, float (&sums)[4][4]) {
        if (!add) return;
        MOP_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (i >= valid_rows) continue;
          const Pack<float> before = load16(at(j, n + i, v));
          MOP_UNROLL
          for (int e = 0; e < 4; ++e) sums[i][e] = before.at[e];
        }
      });
}

// store(n, c, v, four of y without the bias)
template <bool kFast, bool kBySize, class Store>
MOP_DEVICE void stage_3(const Sides& d, int rows, int width_v, const float* rule_out, const float* s,
                        const Store& store) {
  const int pitch = odd_fours(width_v);
  by_size<kBySize>(d.j(), [&](auto j) {
    product<false, false, kFast ? decltype(j)::value : kSingles>(
        rows, d.g_out, width_v, d.j(), [&](int) { return Scratch{rule_out, padded(d.g_out)}; },
        [&](int n) { return Scratch{s + i64(n) * pitch, rows * pitch}; }, store);
  });
}

template <bool kFast, class T>
MOP_DEVICE Pack<float> with_bias(const Pack<float>& sum, const T* bias, i64 column, int valid) {
  return bias == nullptr ? sum : sum_of(sum, load_some<kFast>(bias + column, valid));
}

// Stages 1 and 2 in chunks of u, for `width_v` of v from the start of `local`. t and s may be overwritten at once.
// Threads meet before it returns.
template <bool kFast, bool kBySize, class T>
MOP_DEVICE void first_stages(const Sides& d, int chunk, int rows, int width_v, const Rules& rules, const T* x,
                             const T* local, float* t, float* s) {
  for (int u = 0; u < d.loc_in; u += chunk) {
    const int width = least(chunk, d.loc_in - u);
    sync_threads();
    stage_1<kFast, kBySize>(
        d, rows, width, rules.in, [&](int n) { return Operand<T, kFast>{x + i64(n) * d.in() + u, d.loc_in}; }, t);
    sync_threads();
    stage_2<kFast>(d, rows, width, width_v, t, in_place<kFast>(d, local + i64(u) * d.loc_out), u > 0, s);
  }
  sync_threads();
}

// Hidden rows as the up maps read them, [n, a, u] with rows of padded(loc_in).
struct HiddenRows {
  int width, pitch, row;  // of u; floats of a; floats of n

  MOP_BOTH explicit HiddenRows(const Sides& up)
      : width(up.loc_in), pitch(padded(up.loc_in)), row(up.g_in * padded(up.loc_in)) {}
  MOP_BOTH i64 at(int n, int column) const { return i64(n) * row + column / width * pitch + column % width; }
};

template <bool kFast>
MOP_DEVICE float* scratch_of(float* workspace, i64 floats) {
  return kFast || workspace == nullptr ? shared_memory<float>() : workspace + block_index() * floats;
}

}  // namespace mop::ffn
