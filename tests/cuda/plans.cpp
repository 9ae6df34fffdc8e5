// How mop_ffn's forward and backward are cut into blocks on a GPU, which need not be there: prints plans as JSON.
//
// Arguments: multiprocessors, KB of shared memory of one, KB of a block; bytes an element, pairs, rows.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/mop_ffn_backward_kernel.cuh"
#include "../../csrc/cuda/mop_ffn_kernel.cuh"
#include "../../csrc/cuda/mop_ffn_plan.h"

using namespace mop;
using namespace mop::ffn;

int main(int, char** arguments) {
  const auto number = [&](int index) { return i64(std::atoll(arguments[index])); };
  const Chip chip{number(1), number(2) * 1024, number(3) * 1024, 1024};
  const i64 bytes = number(4), pairs = number(5), rows = number(6);
  const Sides down{16, 1, 16, 16, 48, 8}, up{8, 1, 8, 8, 16, 96};  // the paper's
  const auto print = [&](const char* name, const Plan& plan, i64 floats) {
    const i64 blocks = pairs * div_up(rows, i64(plan.tile.rows));
    std::printf("\"%s\": {\"rows\": %d, \"u\": %d, \"v\": %d, \"at_once\": %d, \"blocks\": %lld, \"bytes\": %lld}",
                name, plan.tile.rows, plan.tile.u, plan.tile.v, plan.blocks_at_once, (long long)blocks,
                (long long)floats * 4);
  };
  const auto forward = [&](const Tile& tile) {
    if (bytes == 2) return tensor_scratch(down, up, {tile.rows, down.loc_in, tile.v}).floats;
    return forward_scratch(Way::fast, down, up, tile, int(bytes)).floats;
  };
  const auto backward = [&](const Tile& tile) { return backward_scratch(down, up, tile, kThreads).floats; };
  Cost cost = cost_of(down, up, 2, bytes);
  Plan plan = plan_of(chip, down, up, pairs, rows, rows, cost, forward);
  std::printf("{");
  print("forward", plan, forward(plan.tile));
  cost.row *= 3;
  cost.tile *= 3;
  plan = plan_of(chip, down, up, pairs, rows, std::max<i64>(1, 264 / pairs), cost, backward);
  std::printf(", ");
  print("backward", plan, backward(plan.tile));
  std::printf("}\n");
}
