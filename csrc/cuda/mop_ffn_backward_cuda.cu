// Gradients of mop_ffn in two launches.
#include "../ops.h"
#include "mop_ffn_backward_kernel.cuh"
#include "mop_ffn_call.h"
#include "mop_ffn_sums_kernel.cuh"

namespace mop {
namespace {

using namespace ffn;

constexpr i64 kMostBlocks = 264;  // with more blocks the rows of a pair are not split further; fixed: it orders sums

// The gradient of one tensor. Blocks write it themselves if each has its own; otherwise it is summed from parts.
struct Wanted {
  bool asked, own;  // own: written by the blocks themselves
  Tensor result;
  Group group;
  i64 parts_a_pair, first_part;  // the latter in floats from the workspace's start

  template <class T>
  Gradient<T> gradient(float* workspace) const {
    if (!asked) return {nullptr, nullptr};
    if (own) return {nullptr, out<T>(result)};
    return {workspace + first_part, nullptr};
  }
};

template <class T>
class Backward {
 public:
  Backward(const Launch& launch, const Tensor& x, const Maps& down, const Maps& ups, const Bank<T>& bank, i64 mask)
      : launch_(launch), x_(x), ups_(ups), bank_(bank), mask_(mask) {
    MOP_GUARD(ups.count <= kMaxMaps && 1 + down.width() + ups.count * ups.width() <= kMaxTotals);
    take_maps(bank_, ups, 0, ups.count);
    const auto floats = [&](const Tile& tile) {
      return backward_scratch(bank.down, bank.up, tile, threads_of_block(kThreads)).floats;
    };
    const i64 most_parts = std::max<i64>(1, kMostBlocks / std::max<i64>(1, bank.pairs()));
    Cost cost = cost_of(bank.down, bank.up, ups.count, sizeof(T));
    cost.row *= 3;   // hidden rows again, and two products for each one
    cost.tile *= 3;  // factors read, parts of their gradients written and read
    plan_ = plan_of(launch.chip(), bank.down, bank.up, bank.pairs(), bank.rows, most_parts, cost, floats);
    tiles_ = div_up(bank.rows, i64(plan_.tile.rows));
    parts_ = std::min(tiles_, most_parts);
    const bool one_block_a_pair = parts_ == 1 && (tiles_ == 1 || sizeof(T) == sizeof(float));
    grad_x_ = wanted(x, bank.x_group, true, 1);
    for (i64 k = 0; k < down.width(); ++k)
      down_.push_back(wanted(down.at(0, k), group(bank.down_groups, k), one_block_a_pair, parts_));
    for (i64 map = 0; map < ups.count; ++map)
      for (i64 k = 0; k < ups.width(); ++k)
        up_.push_back(wanted(ups.at(map, k), group(bank.up_groups, k), one_block_a_pair, parts_));
  }

  std::vector<Tensor> run(const std::vector<Tensor>& grads) {
    const i64 blocks = plan_.blocks(bank_.pairs() * parts_);
    MopBackward<T> p{};
    p.scratch = backward_scratch(bank_.down, bank_.up, plan_.tile, threads_of_block(kThreads));
    const i64 scratch = plan_.on_chip() ? 0 : blocks * p.scratch.floats;
    Tensor workspace;
    float* start = nullptr;
    if (part_floats_ + scratch > 0) {
      workspace = empty_float(x_, {part_floats_ + scratch});
      start = out<float>(workspace);
    }
    p.workspace = plan_.on_chip() ? nullptr : start + part_floats_;
    p.tile = plan_.tile;
    p.tiles = tiles_;
    p.parts = parts_;
    p.dx = grad_x_.template gradient<T>(start);
    p.d_down = gradients(down_.data(), down_.size(), start);
    p.to_down = std::any_of(down_.begin(), down_.end(), [](const Wanted& w) { return w.asked; }) || grad_x_.asked;
    p.needs_hidden = p.to_down;
    p.bank = bank_;
    bool fast = plan_.on_chip() && reads_by_fours(bank_) && has_bounded_tasks(plan_.tile.rows, bank_.down.in());
    for (int map = 0; map < bank_.maps; ++map) {
      p.dy[map] = in<T>(grads[map]);
      fast = fast && starts_whole(p.dy[map]);
      const FactorGradients<T> d = gradients(&up_[map * ups_.width()], ups_.width(), start);
      p.d_up[map] = d;
      p.needs_hidden = p.needs_hidden || d.rule_in.asked() || d.rule_out.asked() || d.local.asked();
    }
    if (bank_.experts != nullptr)
      launch_("mop_ffn_backward, experts", mop_ffn_experts_kernel<T>, bank_.places, kThreads, 0, bank_);
    launch_("mop_ffn_backward", fast ? mop_ffn_backward_kernel<T, true> : mop_ffn_backward_kernel<T, false>, blocks,
            kThreads, plan_.on_chip() ? p.scratch.floats * sizeof(float) : 0, p);
    sum_parts(start);
    std::vector<Tensor> results;
    const auto give = [&](const Wanted& w) {
      if (w.asked) results.push_back(w.result);
    };
    give(grad_x_);
    for (const Wanted& w : down_) give(w);
    for (const Wanted& w : up_) give(w);
    return results;
  }

 private:
  static const Group& group(const FactorGroups& groups, i64 factor) {
    const Group* const all[] = {&groups.rule_in, &groups.rule_out, &groups.local, &groups.bias};
    return *all[factor];
  }

  Wanted wanted(const Tensor& like, const Group& group, bool may_own, i64 parts) {
    const bool asked = mask_ >> bit_++ & 1;
    if (!asked) return {false, false, Tensor(), group, 0, 0};
    const bool own = may_own && bank_.pairs() * bank_.rows > 0 && (group.layers || bank_.layers == 1) &&
                     (group.experts || bank_.places == 1);
    Wanted w{true, own, empty_as(like), group, parts, part_floats_};
    if (!own) part_floats_ += div_up(bank_.pairs() * parts * group.size, i64(4)) * 4;
    return w;
  }

  static FactorGradients<T> gradients(const Wanted* of_map, i64 width, float* start) {
    FactorGradients<T> found{};
    Gradient<T>* const all[] = {&found.rule_in, &found.rule_out, &found.local, &found.bias};
    for (i64 k = 0; k < width; ++k) *all[k] = of_map[k].template gradient<T>(start);
    return found;
  }

  void sum_parts(const float* start) {
    MopTotals<T> p{};
    p.layers = bank_.layers, p.places = bank_.places, p.num_experts = bank_.num_experts, p.experts = bank_.experts;
    i64 blocks = 0;
    const int threads = threads_of_block(kThreads);
    const auto add = [&](const Wanted& w) {
      const bool all_written = bank_.experts == nullptr || !w.group.experts;
      if (!w.asked || w.group.size == 0 || (w.own && all_written)) return;
      const i64 sum = (w.group.layers ? 1 : bank_.layers) * (w.group.experts ? 1 : bank_.places) * w.parts_a_pair;
      short lanes = 1;
      while (lanes * 4 < sum && lanes < 16 && lanes * 2 <= threads) lanes *= 2;
      p.totals[p.count++] = {start + w.first_part, out<T>(w.result), w.group.size, blocks, int(w.parts_a_pair), lanes,
                             w.group.layers,       w.group.experts,  w.own};
      const i64 groups = (w.group.layers ? bank_.layers : 1) * (w.group.experts ? bank_.num_experts : 1);
      blocks += groups * div_up(w.group.size, i64(packs_of_block(threads, lanes)) * 4);
    };
    add(grad_x_);
    for (const Wanted& w : down_) add(w);
    for (const Wanted& w : up_) add(w);
    if (p.count > 0)
      launch_("mop_ffn_sums", mop_ffn_sums_kernel<T>, blocks, kThreads, threads * sizeof(Pack<float>) + 16, p);
  }

  const Launch& launch_;
  const Tensor& x_;
  const Maps& ups_;
  Bank<T> bank_;
  i64 mask_, bit_ = 0, part_floats_ = 0, tiles_, parts_;
  Plan plan_;
  Wanted grad_x_;
  std::vector<Wanted> down_, up_;
};

}  // namespace

std::vector<Tensor> mop_ffn_backward(std::vector<Tensor> grads, Tensor x, std::vector<Tensor> down,
                                     std::vector<Tensor> ups, i64 num_maps, std::string activation,
                                     std::optional<Tensor> experts, i64 mask) {
  const Launch launch(x);
  std::vector<Tensor> results;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Maps down_map{down, 1}, up_maps{ups, num_maps};
    const Bank<T> bank = bank_of<T>(x, down_map, up_maps, activation, experts);
    MOP_GUARD(i64(grads.size()) == num_maps);
    for (Tensor& grad : grads) {
      MOP_GUARD(grad.dim() == 4 && grad.numel() == bank.pairs() * bank.rows * bank.up.out());
      grad = as_contiguous(grad);
    }
    results = Backward<T>(launch, x, down_map, up_maps, bank, mask).run(grads);
  });
  return results;
}

}  // namespace mop
