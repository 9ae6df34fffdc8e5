// mop_ffn: all (layer, expert) pairs and all up maps of the MOP generator in one call.
//
// Forward: stage 1 of the down map once per group of pairs that share x and rule_in, then one task per pair and block
// of rows. Backward: one task per pair and chunk of rows writes the pair's own gradients and a part of each shared
// gradient. Then come the gradients of x and of the down map's rule_in: they sum over the pairs of a group before the
// rule is applied. Last, the parts are summed in order.
#include "cpu_ops.h"

namespace mop {
namespace {

constexpr i64 kLeastRows = 48;

struct Map {  // the tensors of one LowRankPHM
  PhmDims dims;
  Tensor rule_in, rule_out, local;  // rule_in packed
  std::optional<Tensor> bias;
};

Map map_of(const Tensor* factors, std::size_t count) {
  MOP_GUARD(count == 3 || count == 4);
  const Tensor &rule_in = factors[0], &rule_out = factors[1], &local = factors[2];
  MOP_GUARD(rule_in.dim() == 5 && rule_out.dim() == 5 && local.dim() == 5);
  const PhmDims d{local.size(2), rule_in.size(4), rule_in.size(3), rule_out.size(4), local.size(3), local.size(4)};
  MOP_GUARD(rule_in.size(2) == d.terms && rule_out.size(2) == d.terms && rule_out.size(3) == d.rank);
  Map map{d, packed_rule_in(rule_in), rule_out, local, std::nullopt};
  if (count == 4) {
    MOP_GUARD(factors[3].dim() == 3 && factors[3].size(2) == d.out());
    map.bias = factors[3];
  }
  return map;
}

struct Problem {
  Activation activation;
  Map down;
  std::vector<Map> ups;
  Tensor x;
  i64 layers, experts, picked, rows;
  std::vector<i64> ids;         // the expert at each place of the output
  i64 key_layers, key_experts;  // the groups of pairs that share x and rule_in of the down map

  i64 pairs() const { return layers * picked; }
  i64 keys() const { return key_layers * key_experts; }
  i64 key(i64 l, i64 e) const { return (key_layers > 1 ? l : 0) * key_experts + (key_experts > 1 ? e : 0); }
  // the same problem with keys in place of pairs, for the gradients of x and of the down map's rule_in
  Problem by_key() const {
    Problem keys = *this;
    keys.layers = key_layers;
    keys.picked = key_experts;
    return keys;
  }
  // the group of pair (l, place e) in a tensor of parameters
  i64 group(const Tensor& t, i64 l, i64 e) const {
    return (t.size(0) > 1 ? l : 0) * t.size(1) + (t.size(1) > 1 ? ids[e] : 0);
  }
  template <class T>
  Factors<T> factors(const Map& map, i64 l, i64 e) const {
    const auto at = [&](const Tensor& t) { return in<T>(t) + group(t, l, e) * (t.numel() / (t.size(0) * t.size(1))); };
    return {at(map.rule_in), at(map.rule_out), at(map.local), map.bias ? at(*map.bias) : nullptr};
  }
  template <class T>
  const T* x_rows(i64 l, i64 e) const {
    return in<T>(x) + group(x, l, e) * rows * down.dims.in();
  }
  template <class T>
  void all_up_factors(i64 l, i64 e, Factors<T>* to) const {
    for (std::size_t m = 0; m < ups.size(); ++m) to[m] = factors<T>(ups[m], l, e);
  }
};

Problem problem_of(const Tensor& x, const std::vector<Tensor>& down, const std::vector<Tensor>& ups, i64 num_maps,
                   const std::string& activation, const std::optional<Tensor>& experts) {
  MOP_GUARD(num_maps > 0 && ups.size() % num_maps == 0 && x.dim() == 4);
  Problem p{activation_of(activation), map_of(down.data(), down.size()), {}, x, 1, 1, 0, x.size(2), {}, 1, 1};
  const std::size_t width = ups.size() / num_maps;
  for (i64 m = 0; m < num_maps; ++m) p.ups.push_back(map_of(ups.data() + m * width, width));
  const auto visit = [&](const auto& see) {
    see(x);
    for (const auto* list : {&down, &ups})
      for (const Tensor& t : *list) see(t);
  };
  visit([&](const Tensor& t) {
    p.layers = std::max(p.layers, t.size(0));
    p.experts = std::max(p.experts, t.size(1));
  });
  visit([&](const Tensor& t) {
    MOP_GUARD((t.size(0) == 1 || t.size(0) == p.layers) && (t.size(1) == 1 || t.size(1) == p.experts));
  });
  MOP_GUARD(x.size(3) == p.down.dims.in());
  for (const Map& up : p.ups) MOP_GUARD(up.dims.in() == p.down.dims.out());
  p.picked = experts ? experts->numel() : p.experts;
  std::vector<bool> seen(p.experts, false);
  for (i64 e = 0; e < p.picked; ++e) {
    p.ids.push_back(experts ? in<i64>(*experts)[e] : e);
    MOP_GUARD(p.ids[e] >= 0 && p.ids[e] < p.experts && !seen[p.ids[e]]);
    seen[p.ids[e]] = true;
  }
  p.key_layers = std::max(x.size(0), p.down.rule_in.size(0));
  p.key_experts = std::max(x.size(1), p.down.rule_in.size(1)) > 1 ? p.picked : 1;
  return p;
}

// Stage 1 of the down map for every key, in blocks of rows: [key][block][j, rows of the block, u].
template <class T>
Tensor stage1_of_down(const Problem& p, i64 block) {
  const PhmDims& d = p.down.dims;
  Tensor t = empty(p.x, {p.keys(), p.rows, d.j() * d.loc_in});
  T* to = out<T>(t);
  const i64 blocks = (p.rows + block - 1) / block;
  for_each_task(p.picked > 0 ? p.keys() * blocks : 0, [&](i64 task) {
    const i64 key = task / blocks, n = task % blocks * block;
    const i64 l = key / p.key_experts, e = key % p.key_experts;
    kernels<T>().stage1(d, p.factors<T>(p.down, l, e).rule_in, std::min(block, p.rows - n),
                        p.x_rows<T>(l, e) + n * d.in(), to + (key * p.rows + n) * d.j() * d.loc_in);
  });
  return t;
}

template <class T>
void forward(const Problem& p, const std::vector<Tensor>& y) {
  const PhmDims &down = p.down.dims, &up = p.ups[0].dims;
  const int maps = int(p.ups.size());
  const i64 block = block_rows(p.rows, pair_forward_scratch(down, up, 1) * sizeof(T), kLeastRows);
  const i64 blocks = (p.rows + block - 1) / block;
  const Tensor t = stage1_of_down<T>(p, block);
  const T* stage1 = in<T>(t);
  std::vector<T*> outputs;
  for (const Tensor& map : y) outputs.push_back(out<T>(map));
  const bool stream = std::all_of(outputs.begin(), outputs.end(), [&](const T* to) {
    return streams(to, up.loc_out, p.pairs() * p.rows * maps * up.out());
  });
  for_each_task(p.pairs() * blocks, [&](i64 task) {
    const i64 pair = task / blocks, n = task % blocks * block, rows = std::min(block, p.rows - n);
    const i64 l = pair / p.picked, e = pair % p.picked;
    std::vector<Factors<T>> ups(maps);
    p.all_up_factors(l, e, ups.data());
    std::vector<T*> to;
    for (T* output : outputs) to.push_back(output + (pair * p.rows + n) * up.out());
    const T* from = stage1 + (p.key(l, e) * p.rows + n) * down.j() * down.loc_in;
    const PairForward<T> unit{down, up,        p.activation, p.factors<T>(p.down, l, e), ups.data(), maps, rows,
                              from, to.data(), stream};
    kernels<T>().pair_forward(unit, thread_scratch<T>(pair_forward_scratch(down, up, rows)));
  });
}

// The gradient of one tensor of parameters. Units write it directly if each pair has its own and the rows are not
// split. Otherwise each unit writes a part, and finish() sums the parts of the pairs that share the tensor, in order.
struct GradientSum {
  bool asked = false, direct = false;
  i64 layers = 1, experts = 1, size = 0;  // the group dims of the tensor, its elements per group
  Tensor result, parts;
};

GradientSum gradient_sum(const Problem& p, const Tensor& like, bool asked, i64 chunks) {
  GradientSum g;
  g.asked = asked;
  if (!asked) return g;
  g.layers = like.size(0);
  g.experts = like.size(1);
  g.size = like.numel() / (g.layers * g.experts);
  const bool all_written = g.experts == 1 || p.picked == p.experts;
  g.result = all_written ? empty_as(like) : torch::stable::new_zeros(like, like.sizes());
  g.direct = chunks == 1 && g.layers == p.layers && (g.experts > 1 || p.picked == 1);
  if (!g.direct) g.parts = empty(like, {p.pairs() * chunks, g.size});
  return g;
}

template <class T>
T* part_of(const Problem& p, const GradientSum& g, i64 pair, i64 chunk, i64 chunks) {
  if (!g.asked) return nullptr;
  if (!g.direct) return out<T>(g.parts) + (pair * chunks + chunk) * g.size;
  return out<T>(g.result) + p.group(g.result, pair / p.picked, pair % p.picked) * g.size;
}

// The parts are [layer][place of the expert][chunk]. First chunks are summed, then the experts or layers that share.
template <class T>
void finish(const Problem& p, GradientSum& g, i64 chunks) {
  if (!g.asked || g.direct) return;
  const i64 to_layers = g.layers, to_places = g.experts > 1 ? p.picked : 1;
  T* to = out<T>(g.result);
  for_each_task(to_layers * to_places, [&](i64 task) {
    const i64 l = task / to_places, e = task % to_places;
    const i64 layers = to_layers > 1 ? 1 : p.layers, places = to_places > 1 ? 1 : p.picked;
    const T* from = in<T>(g.parts);
    T* at = to + p.group(g.result, l, e) * g.size;
    const i64 first = (l * p.picked + e) * chunks;
    if (layers == 1) {
      kernels<T>().sum_rows(places * chunks, g.size, from + first * g.size, g.size, at);
    } else if (places == p.picked) {
      kernels<T>().sum_rows(layers * places * chunks, g.size, from, g.size, at);
    } else {
      T* rows = thread_scratch<T>(layers * g.size);
      for (i64 k = 0; k < layers; ++k)
        kernels<T>().sum_rows(chunks, g.size, from + (first + k * p.picked * chunks) * g.size, g.size,
                              rows + k * g.size);
      kernels<T>().sum_rows(layers, g.size, rows, g.size, at);
    }
  });
}

// The tensors that ask for gradients. The bits of a mask are x, then the factors of down, then of each up map (ops.py).
struct Asked {
  bool x;
  std::vector<std::vector<GradientSum>> maps;  // [down, ups...][rule_in, rule_out, local, bias]
};

template <class T>
Gradients<T> gradients_of(const Problem& p, const std::vector<GradientSum>& g, i64 pair, i64 chunk, i64 chunks,
                          bool with_rule_in) {
  const auto at = [&](int k) { return part_of<T>(p, g[k], pair, chunk, chunks); };
  return {with_rule_in ? at(0) : nullptr, at(1), at(2), at(3)};
}

template <class T>
Tensor tail_of_down(const Problem& p, i64 block, const Tensor& grad_s, GradientSum& rule_in, bool asked_x) {
  const PhmDims& d = p.down.dims;
  const Problem keys = p.by_key();
  const i64 s_size = p.rows * d.j() * d.loc_out, t_size = p.rows * d.j() * d.loc_in;
  Tensor grad_t = empty(p.x, {p.keys(), t_size});
  std::vector<std::vector<i64>> members(p.keys());
  for (i64 pair = 0; pair < p.pairs(); ++pair) members[p.key(pair / p.picked, pair % p.picked)].push_back(pair);

  for_each_task(p.keys() * d.terms, [&](i64 task) {
    const i64 key = task / d.terms;
    std::vector<const T*> from, locals;
    for (i64 pair : members[key]) {
      from.push_back(in<T>(grad_s) + pair * s_size);
      locals.push_back(p.factors<T>(p.down, pair / p.picked, pair % p.picked).local);
    }
    const DownTail<T> unit{d,
                           task % d.terms,
                           p.rows,
                           block,
                           from.data(),
                           locals.data(),
                           i64(from.size()),
                           p.x_rows<T>(key / p.key_experts, key % p.key_experts),
                           out<T>(grad_t) + key * t_size,
                           part_of<T>(keys, rule_in, key, 0, 1)};
    kernels<T>().down_tail(unit, thread_scratch<T>(down_tail_scratch(d)));
  });

  finish<T>(keys, rule_in, 1);

  if (!asked_x) return Tensor();
  GradientSum x = gradient_sum(keys, p.x, true, 1);
  const i64 blocks = (p.rows + block - 1) / block;
  for_each_task(p.keys() * blocks, [&](i64 task) {
    const i64 key = task / blocks, n = task % blocks * block;
    kernels<T>().grad_x(d, p.factors<T>(p.down, key / p.key_experts, key % p.key_experts).rule_in,
                        std::min(block, p.rows - n), in<T>(grad_t) + key * t_size + n * d.j() * d.loc_in,
                        part_of<T>(keys, x, key, 0, 1) + n * d.in());
  });
  finish<T>(keys, x, 1);
  return x.result;
}

template <class T>
Tensor backward(const Problem& p, const std::vector<Tensor>& grads, Asked& asked, i64 chunks) {
  const PhmDims &down = p.down.dims, &up = p.ups[0].dims;
  const int maps = int(p.ups.size());
  const i64 block = block_rows(p.rows, pair_backward_scratch(down, up, 1) * sizeof(T), kLeastRows);
  const i64 blocks = (p.rows + block - 1) / block;
  const Tensor t = stage1_of_down<T>(p, block);
  GradientSum& rule_in = asked.maps[0][0];
  const bool tail = asked.x || rule_in.asked;
  Tensor grad_s;
  if (tail) grad_s = empty(p.x, {p.pairs(), p.rows * down.j() * down.loc_out});

  for_each_task(p.pairs() * chunks, [&](i64 task) {
    const i64 pair = task / chunks, chunk = task % chunks;
    const i64 l = pair / p.picked, e = pair % p.picked;
    std::vector<Factors<T>> ups(maps);
    p.all_up_factors(l, e, ups.data());
    std::vector<Gradients<T>> up_grads;
    for (int m = 0; m < maps; ++m) up_grads.push_back(gradients_of<T>(p, asked.maps[m + 1], pair, chunk, chunks, true));
    T* scratch = thread_scratch<T>(pair_backward_scratch(down, up, block));
    const i64 begin = blocks * chunk / chunks, end = blocks * (chunk + 1) / chunks;
    for (i64 b = begin; b < end || b == begin; ++b) {  // without blocks: once, to write the zeros
      const i64 n = b * block, rows = b < end ? std::min(block, p.rows - n) : 0;
      std::vector<Rows<T>> grad_y;
      for (const Tensor& g : grads)
        grad_y.push_back(
            {static_cast<const T*>(g.const_data_ptr()) + l * g.stride(0) + e * g.stride(1) + n * g.stride(2),
             g.stride(2), g.stride(3)});
      const PairBackward<T> unit{down,
                                 up,
                                 p.activation,
                                 p.factors<T>(p.down, l, e),
                                 ups.data(),
                                 maps,
                                 rows,
                                 in<T>(t) + (p.key(l, e) * p.rows + n) * down.j() * down.loc_in,
                                 grad_y.data(),
                                 gradients_of<T>(p, asked.maps[0], pair, chunk, chunks, false),
                                 up_grads.data(),
                                 tail ? out<T>(grad_s) + (pair * p.rows + n) * down.j() * down.loc_out : nullptr,
                                 b > begin};
      kernels<T>().pair_backward(unit, scratch);
    }
  });
  for (std::size_t m = 0; m < asked.maps.size(); ++m)
    for (int k = m == 0 ? 1 : 0; k < 4; ++k) finish<T>(p, asked.maps[m][k], chunks);
  return tail ? tail_of_down<T>(p, block, grad_s, rule_in, asked.x) : Tensor();
}

}  // namespace

std::vector<Tensor> mop_ffn(Tensor x, std::vector<Tensor> down, std::vector<Tensor> ups, i64 num_maps,
                            std::string activation, std::optional<Tensor> experts) {
  const Problem p = problem_of(x, down, ups, num_maps, activation, experts);
  std::vector<Tensor> y;
  for (const Map& up : p.ups) y.push_back(empty(x, {p.layers, p.picked, p.rows, up.dims.out()}));
  by_dtype(x, [&](auto zero) { forward<decltype(zero)>(p, y); });
  return y;
}

std::vector<Tensor> mop_ffn_backward(std::vector<Tensor> grads, Tensor x, std::vector<Tensor> down,
                                     std::vector<Tensor> ups, i64 num_maps, std::string activation,
                                     std::optional<Tensor> experts, i64 mask) {
  const Problem p = problem_of(x, down, ups, num_maps, activation, experts);
  MOP_GUARD(i64(grads.size()) == num_maps);
  for (std::size_t m = 0; m < grads.size(); ++m)
    MOP_GUARD(grads[m].dim() == 4 && grads[m].numel() == p.pairs() * p.rows * p.ups[m].dims.out());

  if (p.picked == 0) {  // without experts nothing is written, and all gradients are zero
    std::vector<Tensor> inputs{x}, zeros;
    inputs.insert(inputs.end(), down.begin(), down.end());
    inputs.insert(inputs.end(), ups.begin(), ups.end());
    for (std::size_t k = 0; k < inputs.size(); ++k)
      if (mask >> k & 1) zeros.push_back(torch::stable::new_zeros(inputs[k], inputs[k].sizes()));
    return zeros;
  }

  // few pairs with many rows: split the rows too, by a number that does not depend on the threads
  constexpr i64 kTasks = 16, kRowsAChunk = 64;
  const i64 chunks = std::max<i64>(1, std::min(kTasks / std::max<i64>(1, p.pairs()), p.rows / kRowsAChunk));

  Asked asked{bool(mask & 1), {}};
  int bit = 1;
  for (std::size_t m = 0; m <= p.ups.size(); ++m) {
    const Map& map = m == 0 ? p.down : p.ups[m - 1];
    std::vector<GradientSum> sums;
    const bool by_key = m == 0;  // rule_in of the down map
    sums.push_back(gradient_sum(by_key ? p.by_key() : p, map.rule_in, mask >> bit++ & 1, by_key ? 1 : chunks));
    for (const Tensor* t : {&map.rule_out, &map.local}) sums.push_back(gradient_sum(p, *t, mask >> bit++ & 1, chunks));
    sums.push_back(map.bias ? gradient_sum(p, *map.bias, mask >> bit++ & 1, chunks) : GradientSum{});
    asked.maps.push_back(sums);
  }
  Tensor grad_x;
  by_dtype(x, [&](auto zero) { grad_x = backward<decltype(zero)>(p, grads, asked, chunks); });

  std::vector<Tensor> result;
  if (asked.x) result.push_back(grad_x);
  for (std::size_t m = 0; m < asked.maps.size(); ++m)
    for (int k = 0; k < 4; ++k) {
      const GradientSum& sum = asked.maps[m][k];
      const bool packed = k == 0 && (m == 0 ? p.down : p.ups[m - 1]).dims.rank > 1;
      if (sum.asked) result.push_back(packed ? swapped_sides(sum.result) : sum.result);
    }
  return result;
}

}  // namespace mop
