// mop_ffn: all (layer, expert) pairs and all up maps of the MOP generator, one launch for up to kMaxMaps maps.
#include "../ops.h"
#include "mop_ffn_call.h"
#include "mop_ffn_kernel.cuh"

namespace mop {
namespace {

using namespace ffn;

template <class T>
void forward(const Launch& launch, const Tensor& like, Bank<T> bank, const Maps& ups, const std::vector<Tensor>& y) {
  bool by_fours = true;
  for (i64 first = 0; first < ups.count; first += kMaxMaps) {
    take_maps(bank, ups, first, std::min<i64>(kMaxMaps, ups.count - first));
    by_fours = by_fours && reads_by_fours(bank);
  }
  const int staged = by_fours ? sizeof(T) : 0;
  const auto floats = [&](const Tile& tile) { return forward_scratch(bank.down, bank.up, tile, staged).floats; };
  const Chip& chip = launch.chip();
  const Cost cost = cost_of(bank.down, bank.up, std::min<i64>(kMaxMaps, ups.count), sizeof(T));
  const Plan plan = plan_of(chip, bank.down, bank.up, bank.pairs(), bank.rows, bank.rows, cost, floats);
  const bool fast = by_fours && plan.on_chip();
  for (i64 first = 0; first < ups.count; first += kMaxMaps) {
    MopForward<T> p{};
    take_maps(bank, ups, first, std::min<i64>(kMaxMaps, ups.count - first));
    p.bank = bank;
    p.tile = plan.tile;
    p.tiles = div_up(bank.rows, i64(plan.tile.rows));
    for (int k = 0; k < bank.maps; ++k) p.y[k] = out<T>(y[first + k]);
    // few pairs and rows: the up maps' chunks are shared by several blocks, each of which computes the hidden rows
    const i64 at_once = plan.blocks_at_once * chip.multiprocessors;
    const i64 wanted = std::max<i64>(1, at_once / std::max<i64>(1, bank.pairs() * p.tiles));
    const int narrow = std::max(32, padded(int(div_up(i64(bank.maps) * bank.up.loc_out, wanted))));
    p.tile.v = std::min(p.tile.v, narrow);
    p.splits = std::min<i64>(wanted, i64(bank.maps) * div_up(bank.up.loc_out, p.tile.v));
    p.scratch = forward_scratch(bank.down, bank.up, p.tile, fast ? staged : 0);
    const i64 blocks = plan.blocks(bank.pairs() * p.splits * p.tiles);
    const i64 bytes = plan.on_chip() ? p.scratch.floats * sizeof(float) : 0;
    Tensor workspace;
    if (!plan.on_chip()) {
      workspace = empty_float(like, {blocks * p.scratch.floats});
      p.workspace = out<float>(workspace);
    }
    launch("mop_ffn", fast ? mop_ffn_kernel<T, true> : mop_ffn_kernel<T, false>, blocks, kThreads, bytes, p);
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
