// The two register-blocked products that all CPU kernels are made of.
//
//   product:  C[m, :] = init[m, :] + sum_k A[m, k] B[k, :]       lanes run along the columns of B and C
//   dots:     D[m, n] (+)= sum_b sum_w A[b, m, w] B[b, n, w]      lanes run along w, the accumulators live over all b
//
// A of `product` and D of `dots` take any two strides; all other operands have unit stride along their lanes.
#pragma once

#include "vec.h"

namespace {

typedef int64_t i64;

template <class T>
struct Matrix {  // a read operand with two strides
  const T* data;
  i64 row, col;
};

template <class T>
struct Panel {  // rows of contiguous elements
  T* data;
  i64 row;
};

// The last vector of columns: whole; a part of the columns of B and C; or a part of C, where the rows of B are padded.
enum class Last { whole, part, padded };

template <class T, int MR, int NV, Last LAST, bool STREAM>
static void product_tile(i64 depth, Matrix<T> a, Panel<const T> b, Panel<T> c, Panel<const T> init, int tail) {
  constexpr int W = kLanes<T>;
  Vec<T> acc[MR][NV] = {};
  for (i64 k = 0; k < depth; ++k) {
    Vec<T> row[NV];
    for (int j = 0; j < NV; ++j) {
      const T* from = b.data + k * b.row + j * W;
      row[j] = LAST == Last::part && j == NV - 1 ? load_first(from, tail) : load(from);
    }
    for (int m = 0; m < MR; ++m) {
      const T scalar = a.data[m * a.row + k * a.col];
      for (int j = 0; j < NV; ++j) acc[m][j] += scalar * row[j];
    }
  }
  if (init.data != nullptr)  // last, so that a deep product is a sum of stretches, not one long sum
    for (int m = 0; m < MR; ++m)
      for (int j = 0; j < NV; ++j) {
        const T* from = init.data + m * init.row + j * W;
        acc[m][j] += LAST != Last::whole && j == NV - 1 ? load_first(from, tail) : load(from);
      }
  for (int m = 0; m < MR; ++m)
    for (int j = 0; j < NV; ++j) {
      T* to = c.data + m * c.row + j * W;
      if (LAST != Last::whole && j == NV - 1)
        store_first(to, acc[m][j], tail);
      else if (STREAM)
        stream(to, acc[m][j]);
      else
        store(to, acc[m][j]);
    }
}

// At most MR rows of C by NV vectors. MR is a compile-time size, so it counts down to `rows`.
template <class T, int MR, int NV, Last LAST, bool STREAM>
MOP_INLINE void product_rows(int rows, i64 depth, Matrix<T> a, Panel<const T> b, Panel<T> c, Panel<const T> init,
                             int tail) {
  if (rows == MR)
    product_tile<T, MR, NV, LAST, STREAM>(depth, a, b, c, init, tail);
  else if constexpr (MR > 1)
    product_rows<T, MR - 1, NV, LAST, STREAM>(rows, depth, a, b, c, init, tail);
}

template <class T, int NV, Last LAST, bool STREAM>
static void product_columns(i64 rows, i64 depth, Matrix<T> a, Panel<const T> b, Panel<T> c, Panel<const T> init,
                            int tail) {
  // as many accumulators as leave registers for a row of B and a number of A
  constexpr int MR = kRegisters == 32 ? 8 : (NV == 3 ? 4 : NV == 2 ? 6 : 8);
  const i64 blocks = (rows + MR - 1) / MR;
  for (i64 block = 0, m = 0; block < blocks; ++block) {
    const i64 height = (rows - m + (blocks - block) - 1) / (blocks - block);
    product_rows<T, MR, NV, LAST, STREAM>(int(height), depth, {a.data + m * a.row, a.row, a.col}, b,
                                          {c.data + m * c.row, c.row},
                                          {init.data ? init.data + m * init.row : nullptr, init.row}, tail);
    m += height;
  }
}

// NV or fewer vectors of columns, the last of them with `tail` lanes.
template <class T, int NV, bool STREAM, Last PART = Last::part>
MOP_INLINE void product_group(i64 vectors, int tail, i64 rows, i64 depth, Matrix<T> a, Panel<const T> b, Panel<T> c,
                              Panel<const T> init) {
  const bool whole = tail == kLanes<T>;
  if (vectors == NV && whole)
    product_columns<T, NV, Last::whole, STREAM>(rows, depth, a, b, c, init, tail);
  else if (vectors == NV)
    product_columns<T, NV, PART, false>(rows, depth, a, b, c, init, tail);
  else if constexpr (NV > 1)
    product_group<T, NV - 1, STREAM, PART>(vectors, tail, rows, depth, a, b, c, init);
}

// C = init + A B for a deep B. B is copied, a group of columns and kDepth rows at a time, so that its rows are
// neighbours: rows at distances of a power of two share a few sets of the L1 cache. The copy pays from kMinRows rows
// on.
constexpr i64 kDeep = 96, kMinRows = 24;

template <class T>
__attribute__((noinline)) static void deep_product(i64 rows, i64 columns, i64 depth, Matrix<T> a, Panel<const T> b,
                                                   Panel<T> c, Panel<const T> init) {
  constexpr int W = kLanes<T>, NV = 3;
  constexpr i64 kDepth = 192;
  alignas(64) T packed[kDepth * NV * W];
  const i64 vectors = (columns + W - 1) / W;
  const int last = int(columns - (vectors - 1) * W);
  for (i64 v = 0; v < vectors; v += NV) {
    const i64 some = vectors - v < NV ? vectors - v : NV, at = v * W;
    const int tail = v + some == vectors ? last : W;
    const Panel<T> c_at{c.data + at, c.row};
    Panel<const T> init_at{init.data ? init.data + at : nullptr, init.row};
    for (i64 k0 = 0; k0 < depth; k0 += kDepth) {
      const i64 deep = depth - k0 < kDepth ? depth - k0 : kDepth;
      const T* from = b.data + k0 * b.row + at;
      if (some == NV && tail == W)
        for (i64 k = 0; k < deep; ++k, from += b.row) {
          // the next group's lines, while this group is multiplied
          __builtin_prefetch(from + NV * W, 0, 2);
          __builtin_prefetch(from + 2 * NV * W - 1, 0, 2);
          for (int j = 0; j < NV; ++j) store(packed + (k * NV + j) * W, load(from + j * W));
        }
      else
        for (i64 k = 0; k < deep; ++k, from += b.row)
          for (i64 j = 0; j < some; ++j)
            store(packed + (k * NV + j) * W, j == some - 1 ? load_first(from + j * W, tail) : load(from + j * W));
      product_group<T, NV, false, Last::padded>(some, tail, rows, deep, {a.data + k0 * a.col, a.row, a.col},
                                                {packed, NV * W}, c_at, init_at);
      init_at = {c_at.data, c_at.row};
    }
  }
}

// C (rows x columns) = init + A (rows x depth) B (depth x columns). init.data == nullptr means zero; init may be C.
// With STREAM the stores to C bypass the caches: the rows of C must start at 64-byte lines and be whole lines.
template <class T, bool STREAM = false>
static void product(i64 rows, i64 columns, i64 depth, Matrix<T> a, Panel<const T> b, Panel<T> c,
                    Panel<const T> init = {nullptr, 0}) {
  constexpr int W = kLanes<T>;
  constexpr int NV = STREAM && kVectorBytes < 64 ? 2 : 3;  // with STREAM: whole lines
  // a masked load of 64 bytes in the inner loop takes twice the time of a whole one
  const bool masks = kVectorBytes == 64 && columns % W != 0 && depth >= 8, packs = depth >= kDeep || masks;
  if (!STREAM && packs && rows >= kMinRows) return deep_product<T>(rows, columns, depth, a, b, c, init);
  const i64 vectors = (columns + W - 1) / W, groups = (vectors + NV - 1) / NV;
  const int last = int(columns - (vectors - 1) * W);
  for (i64 v = 0, some, left = groups; left > 0; v += some, --left) {  // of even width: one vector alone is slow
    some = (vectors - v + left - 1) / left;
    const i64 at = v * W;
    product_group<T, NV, STREAM>(some, v + some == vectors ? last : W, rows, depth, a, {b.data + at, b.row},
                                 {c.data + at, c.row}, {init.data ? init.data + at : nullptr, init.row});
  }
}

// B (columns x rows) = A (rows x columns) transposed, in square blocks of registers.
template <class T>
static void transpose(i64 rows, i64 columns, const T* a, T* b) {
  constexpr int W = kLanes<T>;
  i64 m = 0;
  for (; m + W <= rows; m += W) {
    i64 n = 0;
    for (; n + W <= columns; n += W) {
      Vec<T> block[W];
      for (int k = 0; k < W; ++k) block[k] = load(a + (m + k) * columns + n);
      transpose_block(a, block);
      for (int k = 0; k < W; ++k) store(b + (n + k) * rows + m, block[k]);
    }
    for (; n < columns; ++n)
      for (int k = 0; k < W; ++k) b[n * rows + m + k] = a[(m + k) * columns + n];
  }
  for (; m < rows; ++m)
    for (i64 n = 0; n < columns; ++n) b[n * rows + m] = a[m * columns + n];
}

template <class T>
struct Batch {  // an operand of `dots`: element (b, m, w) at data[b * batch + m * row + w]
  const T* data;
  i64 row, batch;
};

// sums[m][n] += the products of one stretch, as vectors: lanes are summed only at the end. Each stretch is first summed
// by itself. So the rounding of a long sum grows with the length of a stretch plus the number of stretches, not with
// their product.
template <class T, int MR, int NR>
static void dots_tile(i64 batches, i64 width, Batch<T> a, Batch<T> b, Vec<T>* sums, i64 sums_row) {
  constexpr int W = kLanes<T>;
  Vec<T> acc[MR][NR] = {};
  const int tail = int(width % W);
  for (i64 k = 0; k < batches; ++k) {
    const T* pa = a.data + k * a.batch;
    const T* pb = b.data + k * b.batch;
    i64 w = 0;
    for (; w + W <= width; w += W) {
      Vec<T> right[NR];
      for (int n = 0; n < NR; ++n) right[n] = load(pb + n * b.row + w);
      for (int m = 0; m < MR; ++m) {
        const Vec<T> left = load(pa + m * a.row + w);
        for (int n = 0; n < NR; ++n) acc[m][n] += left * right[n];
      }
    }
    if (tail) {
      Vec<T> right[NR];
      for (int n = 0; n < NR; ++n) right[n] = load_first(pb + n * b.row + w, tail);
      for (int m = 0; m < MR; ++m) {
        const Vec<T> left = load_first(pa + m * a.row + w, tail);
        for (int n = 0; n < NR; ++n) acc[m][n] += left * right[n];
      }
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NR; ++n) sums[m * sums_row + n] += acc[m][n];
}

template <class T, int MR, int NR>
MOP_INLINE void dots_sized(i64 rows, i64 columns, i64 batches, i64 width, Batch<T> a, Batch<T> b, Vec<T>* sums,
                           i64 sums_row) {
  if (rows >= MR && columns >= NR)
    dots_tile<T, MR, NR>(batches, width, a, b, sums, sums_row);
  else if (rows < MR) {
    if constexpr (MR > 1) dots_sized<T, MR - 1, NR>(rows, columns, batches, width, a, b, sums, sums_row);
  } else {
    if constexpr (NR > 1) dots_sized<T, MR, NR - 1>(rows, columns, batches, width, a, b, sums, sums_row);
  }
}

// D (rows x columns) = or += dots. A patch of D keeps its accumulators for all stretches of the operands that fit the
// L1 cache. Otherwise each tile would fetch both operands again from L2.
template <class T>
static void dots(i64 rows, i64 columns, i64 batches, i64 width, Batch<T> a, Batch<T> b, T* d, i64 d_row, i64 d_col,
                 bool accumulate) {
  constexpr int W = kLanes<T>, MR = 4, NR = kRegisters == 32 ? 6 : 3;
  constexpr i64 kRows = 16, kColumns = 12, kCache = 16 * 1024 / sizeof(T);
  for (i64 n0 = 0; n0 < columns; n0 += kColumns)
    for (i64 m0 = 0; m0 < rows; m0 += kRows) {
      const i64 height = rows - m0 < kRows ? rows - m0 : kRows;
      const i64 breadth = columns - n0 < kColumns ? columns - n0 : kColumns;
      const i64 fit = kCache / (height + breadth);  // elements of a row of an operand
      const i64 stretch = width <= fit ? width : fit / W * W;
      const i64 chunk = stretch < width || fit < 2 * width ? 1 : fit / width;
      Vec<T> sums[kRows * kColumns] = {};
      for (i64 k = 0; k < batches; k += chunk)
        for (i64 w = 0; w < width; w += stretch) {
          const i64 some = batches - k < chunk ? batches - k : chunk;
          const i64 wide = width - w < stretch ? width - w : stretch;
          for (i64 n = 0; n < breadth; n += NR)
            for (i64 m = 0; m < height; m += MR)
              dots_sized<T, MR, NR>(
                  height - m, breadth - n, some, wide, {a.data + k * a.batch + (m0 + m) * a.row + w, a.row, a.batch},
                  {b.data + k * b.batch + (n0 + n) * b.row + w, b.row, b.batch}, sums + m * kColumns + n, kColumns);
        }
      for (i64 m = 0; m < height; ++m)
        for (i64 n = 0; n < breadth; ++n) {
          T* to = d + (m0 + m) * d_row + (n0 + n) * d_col;
          const T value = sum_lanes<T>(sums[m * kColumns + n]);
          *to = accumulate ? *to + value : value;
        }
    }
}

}  // namespace
