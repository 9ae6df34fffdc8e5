// Products whose right operand is packed in panels: kPanel columns each, with all rows of a panel one after another.
#pragma once

#include "stages.h"

namespace {

constexpr int kPanelVectors = kVectorBytes == 64 ? 1 : 2;
template <class T>
constexpr int kPanel = kPanelVectors * kLanes<T>;  // the columns of a register tile

// C (rows x columns) = [C +] A (rows x depth) B. B lies in panels, each of `height` rows of kPanel columns. C is
// written up to whole panels.
template <class T>
void panel_product(i64 rows, i64 columns, i64 depth, Matrix<T> a, const T* b, i64 height, Panel<T> c, bool add) {
  constexpr int P = kPanel<T>;
  constexpr i64 kDepth = 384;  // deeper products are sums of stretches: less rounding, and a stretch of B fits L1
  for (i64 n = 0; n < columns; n += P)
    for (i64 k = 0; k < depth || k == 0; k += kDepth) {
      const Panel<T> to{c.data + n, c.row};
      const Panel<const T> init{add || k > 0 ? to.data : nullptr, c.row};
      product_columns<T, kPanelVectors, Last::whole, false>(rows, smaller(kDepth, depth - k),
                                                            {a.data + k * a.col, a.row, a.col},
                                                            {b + n * height + k * P, P}, to, init, kLanes<T>);
    }
}

// to[e / kPanel][c][e % kPanel] of `rows` rows; row_of(c) is the row. `height`: rows of a panel
template <class T, class RowOf>
void pack_rows(i64 rows, i64 width, i64 height, const RowOf& row_of, T* to) {
  constexpr int W = kLanes<T>, P = kPanel<T>;
  const i64 padded = (width + P - 1) / P * P;
  for (i64 c = 0; c < rows; ++c) {
    const T* from = row_of(c);
    for (i64 e = 0; e < padded; e += W) {
      const Vec<T> part = e < width ? load_lanes(from + e, int(smaller(W, width - e))) : Vec<T>{};
      store(to + (e / P * height + c) * P + e % P, part);
    }
  }
}

// to[c / kPanel][e][c % kPanel] of whole panels of columns
template <class T, class RowOf>
void pack_columns(i64 columns, i64 width, const RowOf& row_of, T* to) {
  constexpr int W = kLanes<T>, P = kPanel<T>;
  for (i64 c = 0; c < columns; c += W) {
    const T* from[W];
    for (int k = 0; k < W; ++k) from[k] = row_of(c + k);
    T* panel = to + c / P * P * width + c % P;
    for (i64 e = 0; e < width; e += W) {
      const int some = int(smaller(W, width - e));
      Vec<T> block[W];
      for (int k = 0; k < W; ++k) block[k] = load_lanes(from[k] + e, some);
      transpose_block(from[0], block);
      for (int k = 0; k < some; ++k) store(panel + (e + k) * P, block[k]);
    }
  }
}

// to[e] = from[e] factor; reads whole registers
template <class T>
MOP_INLINE void write_scaled(i64 width, const T* from, T factor, T* to) {
  constexpr int W = kLanes<T>;
  for (i64 e = 0; e < width; e += W) store_lanes(to + e, load(from + e) * factor, int(smaller(W, width - e)));
}

}  // namespace
