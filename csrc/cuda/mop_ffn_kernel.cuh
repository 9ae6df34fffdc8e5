// mop_ffn forward: y = up(activation(down(x))) for all (layer, expert) pairs and all up maps in one launch.
// docs/performance_gpu.md has the cost of the paper's bank.
#pragma once

#include <type_traits>

#include "mop_ffn_cores.cuh"
#include "mop_ffn_tensor.cuh"

namespace mop::ffn {

// Grid: tiles fastest, then splits, pairs; or fewer blocks, which take several items in turn.
template <class T, Way kWay>
MOP_KERNEL MOP_BLOCKS(kThreads, kWay == Way::any ? 1 : 2) mop_ffn_kernel(MopForward<T> p) {
  using Block = std::conditional_t<kWay == Way::tensor, TensorBlock<T>, CoresBlock<T, kWay>>;
  constexpr bool kFast = kWay != Way::any;
  for (i64 item = block_index(); item < p.bank.pairs() * p.splits * p.tiles; item += num_blocks()) {
    if (p.bank.experts != nullptr) check_expert(p.bank, item / p.tiles / p.splits % p.bank.places);
    const Block block(p, item, scratch_of<kFast>(p.workspace, p.scratch.floats));
    if constexpr (kFast) {
      block.copy(0);
      commit_copies();
    }
    for (int index = 0; index < block.steps; ++index) {
      if constexpr (kFast) {
        if (index + 1 < block.steps) block.copy(index + 1);
        commit_copies();
        wait_for_copies<1>();
      }
      sync_threads();
      const Step step = block.step(index);
      if (step.map == Step::kDown)
        block.down(index, step);
      else
        block.up(index, step);
      sync_threads();
    }
  }
}

}  // namespace mop::ffn
