// mop_ffn: all (layer, expert) pairs and all up maps of the MOP generator, one launch for up to kMaxMaps maps.
#include "../ops.h"
#include "mop_ffn_call.h"
#include "mop_ffn_kernel.cuh"

namespace mop {
namespace {

using namespace ffn;

template <class T>
bool is_aligned16(const Factors<T>& factors) {
  return mop::is_aligned16(factors.local) && mop::is_aligned16(factors.bias);
}

template <class T>
Way way_of(Bank<T> bank, const Maps& ups) {
  const Sides &down = bank.down, &up = bank.up;
  bool eights = sizeof(T) == 2 && (down.loc_in | down.loc_out | up.loc_in | up.loc_out) % 8 == 0;
  eights = eights && mop::is_aligned16(bank.x) && is_aligned16(bank.down_factors);
  for (i64 first = 0; first < ups.count; first += kMaxMaps) {
    take_maps(bank, ups, first, std::min<i64>(kMaxMaps, ups.count - first));
    if (!reads_by_fours(bank)) return Way::any;
    for (int k = 0; k < bank.maps; ++k) eights = eights && is_aligned16(bank.up_factors[k]);
  }
  if (!eights) return Way::fast;
  const i64 least = tensor_scratch(down, up, {kFewestRows, down.loc_in, 8}).floats * i64(sizeof(float));
  return least <= kLeastShared ? Way::tensor : Way::fast;
}

// Returns the scratch of a tile: more than exists if the tile does not suit the tensor cores.
template <class T>
ForwardScratch scratch_of(Way way, const Bank<T>& bank, const Tile& tile) {
  if (way != Way::tensor) return forward_scratch(way, bank.down, bank.up, tile, sizeof(T));
  ForwardScratch scratch = tensor_scratch(bank.down, bank.up, {tile.rows, bank.down.loc_in, tile.v});
  if (tile.v % 8 != 0) scratch.floats = kMostFloats + 1;
  return scratch;
}

template <class T>
void (*kernel_of(Way way))(MopForward<T>) {
  if constexpr (sizeof(T) == 2)
    if (way == Way::tensor) return mop_ffn_kernel<T, Way::tensor>;
  return way == Way::fast ? mop_ffn_kernel<T, Way::fast> : mop_ffn_kernel<T, Way::any>;
}

template <class T>
void forward(const Launch& launch, const Tensor& like, Bank<T> bank, const Maps& ups, const std::vector<Tensor>& y) {
  const Chip& chip = launch.chip();
  const i64 most_maps = std::min<i64>(kMaxMaps, ups.count);
  Way way = way_of(bank, ups);
  const auto plan_by = [&](Way by) {
    const auto floats = [&](const Tile& tile) { return scratch_of(by, bank, tile).floats; };
    const Cost cost = cost_of(bank.down, bank.up, most_maps, sizeof(T));
    return plan_of(chip, bank.down, bank.up, bank.pairs(), bank.rows, bank.rows, cost, floats);
  };
  Plan plan = plan_by(way);
  if (way == Way::tensor && !plan.on_chip()) plan = plan_by(way = Way::fast);  // a test took the memory away
  if (!plan.on_chip()) way = Way::any;
  for (i64 first = 0; first < ups.count; first += kMaxMaps) {
    MopForward<T> p{};
    take_maps(bank, ups, first, std::min<i64>(kMaxMaps, ups.count - first));
    p.bank = bank;
    p.tile = plan.tile;
    p.tiles = div_up(bank.rows, i64(plan.tile.rows));
    for (int k = 0; k < bank.maps; ++k) p.y[k] = out<T>(y[first + k]);
    // few pairs and rows: several blocks share the chunks of the up maps, and each block computes the hidden rows
    const i64 at_once = plan.blocks_at_once * chip.multiprocessors;
    const i64 wanted = std::max<i64>(1, at_once / std::max<i64>(1, bank.pairs() * p.tiles));
    const int even = div_up(int(div_up(i64(bank.maps) * bank.up.loc_out, wanted)), 8) * 8;
    p.tile.v = std::min(p.tile.v, std::max(32, even));
    if (way == Way::tensor) p.tile.u = bank.down.loc_in;
    p.splits = std::min<i64>(wanted, i64(bank.maps) * div_up(bank.up.loc_out, p.tile.v));
    p.scratch = scratch_of(way, bank, p.tile);
    const i64 blocks = plan.blocks(bank.pairs() * p.splits * p.tiles);
    const i64 bytes = plan.on_chip() ? p.scratch.floats * sizeof(float) : 0;
    Tensor workspace;
    if (!plan.on_chip()) {
      workspace = empty_float(like, {blocks * p.scratch.floats});
      p.workspace = out<float>(workspace);
    }
    launch("mop_ffn", kernel_of<T>(way), blocks, kThreads, bytes, p);
  }
}

}  // namespace

std::vector<Tensor> mop_ffn(Tensor x, std::vector<Tensor> down, std::vector<Tensor> ups, i64 num_maps,
                            std::string activation, std::optional<Tensor> experts) {
  const Launch launch(x);
  std::vector<Tensor> y;
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Maps up_maps{ups, num_maps};
    const Bank<T> bank = bank_of<T>(x, Maps{down, 1}, up_maps, activation, experts);
    for (i64 k = 0; k < num_maps; ++k) y.push_back(empty(x, {bank.layers, bank.places, bank.rows, bank.up.out()}));
    forward<T>(launch, x, bank, up_maps, y);
  });
  return y;
}

}  // namespace mop
