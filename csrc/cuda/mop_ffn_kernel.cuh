// mop_ffn forward: y = up(activation(down(x))) for all (layer, expert) pairs and all up maps in one launch.
//
// Letters as in reference.py: n row; j = (term i, rank r); a, c sides of the rule; u, v sides of the local. A map is
//   1. t[j, n, u] = sum_a rule_in[j, a] x[n, a, u]   2. s[j, n, v] = sum_u t[j, n, u] local[i, u, v]
//   3. y[n, c, v] = sum_j rule_out[j, c] s[j, n, v] + bias[c, v]
// A block computes a tile of rows of one pair: the hidden rows, which stay in its scratch memory, then its share of the
// up maps, in chunks of v. Scratch is shared memory; where not even one hidden row fits (d_mid of some thousands), it
// is memory of the GPU. All of it is float, whatever the dtype of the tensors.
//
// Cost of the paper's bank (60 pairs, 40 rows, d 768 -> 128 -> 2 x 768) in 120 blocks of 20 rows: 142.5 M multiply-adds
// and, in float32, 15 MB of factors and 7 MB of x read through L2, 15 MB written: an estimated 12 to 20 us on an H200,
// of which 5 are arithmetic at the full rate. Not measured.
#pragma once

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

// Which of the two group dims a tensor has in full, and the elements of one group.
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

// What forward and backward read.
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

// A tile of rows, of which the down map's u and the up maps' v are taken in chunks.
struct Tile {
  int rows, u, v;
};

// The pair of a block, and what it reads of the down map.
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

// Stops if the expert at a place does not exist or is at a place before, too. All threads look.
template <class T>
MOP_DEVICE void check_expert(const Bank<T>& bank, i64 place) {
  const i64 expert = bank.experts[place];
  if (expert < 0 || expert >= bank.num_experts) stop("experts must lie in 0..num_experts - 1");
  MOP_UNROLL_BY(1)
  for (i64 k = thread_index(); k < place; k += block_threads())
    if (bank.experts[k] == expert) stop("experts must be distinct");
}

MOP_DEVICE float activated(Activation activation, float x) {
  constexpr float kRootHalf = 0.70710678f, kGeluScale = 0.79788456f;
  switch (activation) {
    case Activation::relu:
      return x < 0.f ? 0.f : x;  // NaN passes, as in torch
    case Activation::gelu:
      return 0.5f * x * (1.f + erff(x * kRootHalf));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.f + tanhf(kGeluScale * (x + 0.044715f * x * x * x)));
    case Activation::tanh:
      return tanhf(x);
    case Activation::silu:
      return x / (1.f + expf(-x));
    case Activation::identity:
      return x;
  }
  return x;
}

// Scratch rows of a map's rules: rule_in [j, a], rule_out [j, c].
MOP_BOTH i64 rules_floats(const Sides& d) { return i64(d.j()) * (padded(d.g_in) + padded(d.g_out)); }

struct Rules {
  float *in, *out;
};

template <class T>
MOP_DEVICE Rules copy_rules(const Sides& d, const Factors<T>& from, float* to) {
  const Rules rules{to, to + i64(d.j()) * padded(d.g_in)};
  for (int k = thread_index(); k < d.j() * d.g_in; k += block_threads()) {  // as they lie: i, a, r
    const int r = k % d.rank, a = k / d.rank % d.g_in, i = k / d.rank / d.g_in;
    rules.in[(i * d.rank + r) * padded(d.g_in) + a] = to_float(from.rule_in[k]);
  }
  for (int k = thread_index(); k < d.j() * d.g_out; k += block_threads())
    rules.out[k / d.g_out * padded(d.g_out) + k % d.g_out] = to_float(from.rule_out[k]);
  return rules;
}

// The kernels are compiled twice. kFast: scratch is shared memory, every loc_in and loc_out is whole fours and every
// tensor starts at a whole four, so that all is read and written by fours. Otherwise scratch may be anywhere, elements
// are read one by one, and any sizes will do. kBySize: a sum over g_in or j (with rank 1, terms) of a usual size is
// compiled apart; only where that is much of the work, as compiling takes long.
template <bool kFast>
constexpr int kLocal = kFast ? kFours : kSingles;
template <bool kFast>
constexpr int kSide = kFast ? kFoursAndRest : kSingles;

// t for `width` of u; x_of(n) gives the rows over u of row n, one an a. Rows of t are odd_fours(width) long.
template <bool kFast, bool kBySize, class X>
MOP_DEVICE void stage_1(const Sides& d, int rows, int width, const float* rule_in, const X& x_of, float* t) {
  const int pitch = odd_fours(width);
  by_size<kBySize>(d.g_in, [&](auto g_in) {
    product<true, false, kFast ? decltype(g_in)::value : kSingles>(
        rows, d.j(), width, d.g_in, [&](int) { return Scratch{rule_in, padded(d.g_in)}; }, x_of,
        [&](int n, int j, int u, const Pack<float>& sum) { store16(t + i64(j * rows + n) * pitch + u, sum); });
  });
}

// s (+)= t local for `width` of u and `width_v` of v; `local` starts at the first of both.
template <bool kFast, class T>
MOP_DEVICE void stage_2(const Sides& d, int rows, int width, int width_v, const float* t, const T* local, bool add,
                        float* s) {
  const int pitch = odd_fours(width), pitch_v = odd_fours(width_v);
  product<true, false, kLocal<kFast>>(
      d.j(), rows, width_v, width, [&](int j) { return Scratch{t + i64(j) * rows * pitch, pitch}; },
      [&](int j) { return Operand<T, kFast>{local + i64(j / d.rank) * d.loc_in * d.loc_out, d.loc_out}; },
      [&](int j, int n, int v, const Pack<float>& sum) {
        float* const at = s + i64(j * rows + n) * pitch_v + v;
        store16(at, add ? sum_of(load16(at), sum) : sum);
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

// Stages 1 and 2 in chunks of u, for `width_v` of v, the first of which is where `local` starts. t and s may be
// overwritten at once; threads meet before it returns.
template <bool kFast, bool kBySize, class T>
MOP_DEVICE void first_stages(const Sides& d, int chunk, int rows, int width_v, const Rules& rules, const T* x,
                             const T* local, float* t, float* s) {
  for (int u = 0; u < d.loc_in; u += chunk) {
    const int width = least(chunk, d.loc_in - u);
    sync_threads();
    stage_1<kFast, kBySize>(
        d, rows, width, rules.in, [&](int n) { return Operand<T, kFast>{x + i64(n) * d.in() + u, d.loc_in}; }, t);
    sync_threads();
    stage_2<kFast>(d, rows, width, width_v, t, local + i64(u) * d.loc_out, u > 0, s);
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

// Offsets of the buffers in scratch memory, and how many floats it has.
struct ForwardScratch {
  i64 hidden, rules, t, down_s, up_s, floats;
};

MOP_BOTH ForwardScratch forward_scratch(const Sides& down, const Sides& up, const Tile& tile) {
  ForwardScratch at{};
  at.rules = i64(tile.rows) * HiddenRows(up).row;
  at.t = at.rules + (rules_floats(down) > rules_floats(up) ? rules_floats(down) : rules_floats(up));
  const i64 down_rows = i64(tile.rows) * down.j(), up_rows = i64(tile.rows) * up.j();
  at.down_s = at.t + down_rows * odd_fours(tile.u);
  at.up_s = at.t + up_rows * odd_fours(up.loc_in);
  const i64 down_end = at.down_s + down_rows * odd_fours(down.loc_out);
  const i64 up_end = at.up_s + up_rows * odd_fours(tile.v);
  at.floats = down_end > up_end ? down_end : up_end;
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

// Grid: tiles fastest, then splits, pairs; or fewer blocks, which take several in turn.
template <class T, bool kFast>
MOP_KERNEL MOP_BLOCKS(kThreads, kFast ? 2 : 1) mop_ffn_kernel(MopForward<T> p) {
  const Bank<T>& bank = p.bank;
  const Sides &down = bank.down, &up = bank.up;
  const HiddenRows hidden(up);
  float* const scratch = scratch_of<kFast>(p.workspace, p.scratch.floats);
  float *const h = scratch + p.scratch.hidden, *const t = scratch + p.scratch.t;
  const int chunks = div_up(up.loc_out, p.tile.v), work = bank.maps * chunks;
  for (i64 item = block_index(); item < bank.pairs() * p.splits * p.tiles; item += num_blocks()) {
    const i64 first_row = item % p.tiles * p.tile.rows, split = item / p.tiles % p.splits;
    const int rows = int(least(i64(p.tile.rows), bank.rows - first_row));
    if (bank.experts != nullptr) check_expert(bank, item / p.tiles / p.splits % bank.places);
    const Pair<T> pair(bank, item / p.tiles / p.splits);
    const T* const x = pair.of(bank, bank.x, bank.x_group) + first_row * down.in();

    const Factors<T> factors = pair.of(bank, bank.down_factors, bank.down_groups);
    Rules rules = copy_rules(down, factors, scratch + p.scratch.rules);
    first_stages<kFast, kFast>(down, p.tile.u, rows, down.loc_out, rules, x, factors.local, t,
                               scratch + p.scratch.down_s);
    stage_3<kFast, false>(down, rows, down.loc_out, rules.out, scratch + p.scratch.down_s,
                          [&](int n, int c, int v, const Pack<float>& sum) {
                            const int column = c * down.loc_out + v, valid = down.loc_out - v;
                            const Pack<float> y = with_bias<kFast>(sum, factors.bias, column, valid);
                            MOP_UNROLL
                            for (int e = 0; e < 4; ++e)
                              if (e < valid) h[hidden.at(n, column + e)] = activated(bank.activation, y.at[e]);
                          });

    int last_map = -1;
    Factors<T> own{};
    for (int k = int(work * split / p.splits); k < int(work * (split + 1) / p.splits); ++k) {
      const int map = k / chunks, first_v = k % chunks * p.tile.v, width_v = least(p.tile.v, up.loc_out - first_v);
      sync_threads();
      if (map != last_map) {
        own = pair.of(bank, bank.up_factors[map], bank.up_groups);
        rules = copy_rules(up, own, scratch + p.scratch.rules);
        sync_threads();
        stage_1<kFast, false>(
            up, rows, up.loc_in, rules.in, [&](int n) { return Scratch{h + i64(n) * hidden.row, hidden.pitch}; }, t);
        last_map = map;
        sync_threads();
      }
      stage_2<kFast>(up, rows, up.loc_in, width_v, t, own.local + first_v, false, scratch + p.scratch.up_s);
      sync_threads();
      T* const y = p.y[map] + (pair.index * bank.rows + first_row) * up.out();
      stage_3<kFast, kFast>(
          up, rows, width_v, rules.out, scratch + p.scratch.up_s, [&](int n, int c, int v, const Pack<float>& sum) {
            const int column = c * up.loc_out + first_v + v, valid = width_v - v;
            store_some<kFast>(y + i64(n) * up.out() + column, with_bias<kFast>(sum, own.bias, column, valid), valid);
          });
    }
    sync_threads();
  }
}

}  // namespace mop::ffn
