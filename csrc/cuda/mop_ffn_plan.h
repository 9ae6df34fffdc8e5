// How the work of mop_ffn is cut into blocks: rows per tile and widths of chunks, for the device that runs it.
#pragma once

#include "chip.h"
#include "mop_ffn_stages.cuh"

namespace mop::ffn {

constexpr int kMostRows = 32;                     // of a tile
constexpr int kFewestRows = 4;                    // of a tile; with fewer rows a block would read its factors too often
constexpr int kBlocksAtOnce = 2;                  // on a multiprocessor, by the registers of the fast kernels
constexpr i64 kMostFloats = 4 << 20;              // of the scratch of a block in the GPU's memory
constexpr i64 kMostWorkspace = 16 * kMostFloats;  // of all blocks together

// Returns the widest even chunk of `size` for which fits(width) is true; 0 if it is narrower than `least_width`.
template <class Fits>
int widest_chunk(int size, int least_width, const Fits& fits) {
  for (int width = padded(size);;) {
    if (fits(width)) return width;
    if (width <= least_width) return 0;
    width = padded(div_up(size, div_up(size, width - 4)));
  }
}

// Returns the tile of `rows` rows with the widest chunks whose scratch, floats(tile), is at most `limit`; without rows
// if even narrow chunks do not fit.
template <class Floats>
Tile widest_tile(const Sides& down, const Sides& up, int rows, i64 limit, const Floats& floats) {
  const int narrow_u = rows > 4 ? 12 : 8, narrow_v = rows > 4 ? 16 : 8;
  Tile tile{rows, std::min(narrow_u, padded(down.loc_in)), 0};
  tile.v = widest_chunk(up.loc_out, narrow_v, [&](int v) { return floats(Tile{rows, tile.u, v}) <= limit; });
  if (tile.v == 0) return {0, 0, 0};
  tile.u = widest_chunk(down.loc_in, narrow_u, [&](int u) { return floats(Tile{rows, u, tile.v}) <= limit; });
  return tile;
}

// The place of the scratch of a launch, and its number of blocks.
struct Plan {
  Tile tile;
  int blocks_at_once;  // on a multiprocessor
  i64 most_blocks;     // of a launch with scratch in the GPU's memory, where a block takes several items; 0: on chip

  bool on_chip() const { return most_blocks == 0; }
  i64 blocks(i64 items) const { return on_chip() ? items : std::min(items, most_blocks); }
};

// The cost of a pair for a block, in cycles of a multiprocessor: per row, and per tile of any number of rows. Estimated
// from half the rate of the multiply-adds, and factors at 48 bytes per cycle.
struct Cost {
  double row, tile;
};

inline double multiply_adds(const Sides& d) {
  return double(d.j()) * (double(d.in()) + double(d.loc_in) * d.loc_out + d.out());
}

inline Cost cost_of(const Sides& down, const Sides& up, i64 maps, i64 element_bytes) {
  const auto numbers = [](const Sides& d) { return double(d.terms) * d.loc_in * d.loc_out; };
  constexpr double kMultiplyAdds = 64, kBytes = 48, kStart = 1000;
  return {(multiply_adds(down) + maps * multiply_adds(up)) / kMultiplyAdds,
          kStart + (numbers(down) + maps * numbers(up)) * element_bytes / kBytes};
}

// Returns the time of `blocks` equal blocks, in units of a block that shares its multiprocessor with enough others. A
// block that is alone waits for memory and barriers: it takes half as long again (estimated).
inline double duration(const Chip& chip, i64 blocks, int at_once) {
  constexpr double kAlone = 1.5;
  const i64 slots = at_once * chip.multiprocessors, last_wave = div_up(blocks % slots, chip.multiprocessors);
  return double(blocks / slots * at_once) * (at_once == 1 ? kAlone : 1) +
         double(last_wave) * (last_wave == 1 ? kAlone : 1);
}

// Returns the plan with the rows per tile that take a launch the least time; `most_parts` blocks share the tiles of a
// pair.
template <class Floats>
Plan plan_of(const Chip& chip, const Sides& down, const Sides& up, i64 pairs, i64 rows, i64 most_parts,
             const Cost& cost, const Floats& floats) {
  Plan best{};
  double least_time = 0;
  const int fewest = int(std::min<i64>(rows, kFewestRows));
  for (int most = int(std::min<i64>(rows, kMostRows)), height; most >= std::max(1, fewest); most = height - 1) {
    const i64 tiles = div_up(rows, i64(most)), parts = std::min(tiles, most_parts);
    height = int(div_up(rows, tiles));
    // with enough waves, more tiles only read the factors more often
    if (best.blocks_at_once == kBlocksAtOnce && pairs * tiles > 4 * kBlocksAtOnce * chip.multiprocessors) break;
    const double rows_computed = (height + padded(height)) / 2.;  // products take rows by fours, or one by one
    const double block_time = double(div_up(tiles, parts)) * (rows_computed * cost.row + cost.tile);
    for (int at_once = kBlocksAtOnce; at_once > 0; --at_once) {
      const double time = block_time * duration(chip, pairs * parts, at_once);
      if (best.tile.rows > 0 && time >= least_time) continue;
      const Tile tile = widest_tile(down, up, height, chip.room(at_once) / i64(sizeof(float)), floats);
      if (tile.rows > 0) best = {tile, at_once, 0}, least_time = time;
    }
  }
  if (best.tile.rows > 0) return best;
  if (rows == 0) return {{1, 4, 4}, 1, 0};
  Tile large{};
  for (int height = int(std::min<i64>(rows, kMostRows)); height >= fewest && large.rows == 0;
       height = padded(height) - 4)
    large = widest_tile(down, up, height, kMostFloats, floats);
  if (large.rows == 0) large = {1, 4, 4};
  MOP_GUARD(floats(large) < i64(1) << 31);
  return {large, 1, std::max<i64>(1, std::min(chip.multiprocessors, kMostWorkspace / floats(large)))};
}

}  // namespace mop::ffn
