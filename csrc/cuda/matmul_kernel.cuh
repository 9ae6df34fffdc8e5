// C[b, m, n] = sum_k A[b, m, k] B[b, k, n] (+ bias[m, n]) for operands whose indices may each be a pair.
//
// Every product of phm_weight, phm_linear and lowrank_phm_linear has this form, with the right strides of its tensors:
// an index such as (n, u) is one axis of pairs. Plain tiles in shared memory, float sums on the CUDA cores. A block
// computes one tile of C, for one part of k if the product is split for parallelism. sums_kernel.cuh adds the parts in
// order.
#pragma once

#include "device.h"

namespace mop {

// The offset of index k of an axis in a tensor is (k / inner) * outer_stride + (k % inner) * stride, with Axis::inner.
struct Strides {
  i64 outer_stride, stride;
};

// An axis of `size` indices, in pairs (size / inner, inner), and its strides in the two tensors (or three) that have
// it.
struct Axis {
  i64 size, inner;
  Strides first, second, third;
};

MOP_BOTH i64 offset_of(i64 index, i64 inner, Strides s) {
  return index / inner * s.outer_stride + index % inner * s.stride;
}

// The contiguous axis of an operand, along which neighbouring threads read, and whether they read by 16 bytes.
struct Layout {
  bool second_axis, packed;
};

template <class T>
struct Matmul {
  Axis batch;  // strides in a, b, c
  Axis m;      // in a, c, bias
  Axis n;      // in b, c, bias
  Axis k;      // in a, b
  const T* a;
  const T* b;
  const T* bias;  // or null
  T* c;           // or null: then
  float* parts;   // [splits, c_size], each part of k apart
  i64 splits, c_size;
  Layout layout_a, layout_b, layout_c;  // of (m, k), (k, n), (m, n)
};

constexpr int kMicro = 4;   // a thread computes kMicro x kMicro elements
constexpr int kDepth = 16;  // of a tile along k

// The sides of a tile in threads: a power of two each, side_m * side_n = threads.
struct TileShape {
  int side_m, side_n;
  MOP_BOTH int rows() const { return side_m * kMicro; }
  MOP_BOTH int columns() const { return side_n * kMicro; }
  // A's tile as [k][m], B's as [k][n]; C's, as [m][n], takes their place; then the offsets of the axes.
  MOP_BOTH int row_pitch() const { return rows() + 4; }
  MOP_BOTH int column_pitch() const { return columns() + 4; }
  MOP_BOTH int floats() const {
    const int operands = kDepth * (row_pitch() + column_pitch()), result = rows() * column_pitch();
    return operands > result ? operands : result;
  }
  MOP_BOTH int offsets() const { return 3 * rows() + 3 * columns() + 2 * kDepth; }
  MOP_BOTH i64 shared_bytes() const { return floats() * sizeof(float) + offsets() * sizeof(i64); }
};

MOP_BOTH TileShape tile_shape(int threads) {
  int side = 1;
  while (side * side < threads) side *= 2;
  return {threads / side, side};
}

// Reads a tile of `first` x `second` indices into to[second][first], or into to[first][second] if `transposed`, with
// zeros past the valid indices.
template <class T>
MOP_DEVICE void read_tile(const T* from, Layout layout, int first, int second, int valid_first, int valid_second,
                          const i64* first_offsets, const i64* second_offsets, float* to, int first_pitch,
                          int second_pitch) {
  const int width = layout.packed ? Pack<T>::size : 1;
  const int along = layout.second_axis ? second : first, total = first * second / width;
  for (int k = thread_index(); k < total; k += block_threads()) {
    const int inner = k % (along / width) * width, outer = k / (along / width);
    const int f = layout.second_axis ? outer : inner, s = layout.second_axis ? inner : outer;
    float* const at = to + f * first_pitch + s * second_pitch;
    const int step = layout.second_axis ? second_pitch : first_pitch;
    const bool valid = f < valid_first && s < valid_second;
    if (layout.packed) {
      Pack<T> pack;
      if (valid) pack = load16(from + first_offsets[f] + second_offsets[s]);
      MOP_UNROLL
      for (int e = 0; e < Pack<T>::size; ++e) at[e * step] = valid ? to_float(pack.at[e]) : 0.f;
    } else {
      *at = valid ? to_float(from[first_offsets[f] + second_offsets[s]]) : 0.f;
    }
  }
}

// Writes a tile of C from shared memory, tile[m][n]; `Out` is T, or float for a part.
template <class Out, class T>
MOP_DEVICE void write_tile(const Matmul<T>& p, Out* to, bool with_bias, const TileShape& shape, int rows, int columns,
                           const float* tile, const i64* row_offsets, const i64* column_offsets, const i64* row_biases,
                           const i64* column_biases) {
  const int width = p.layout_c.packed ? Pack<Out>::size : 1;
  const int along = p.layout_c.second_axis ? shape.columns() : shape.rows();
  const int total = shape.rows() * shape.columns() / width;
  for (int k = thread_index(); k < total; k += block_threads()) {
    const int inner = k % (along / width) * width, outer = k / (along / width);
    const int row = p.layout_c.second_axis ? outer : inner, column = p.layout_c.second_axis ? inner : outer;
    if (row >= rows || column >= columns) continue;
    const float* const from = tile + row * shape.column_pitch() + column;
    const int step = p.layout_c.second_axis ? 1 : shape.column_pitch();
    const T* const bias = with_bias ? p.bias + row_biases[row] + column_biases[column] : nullptr;
    Out* const at = to + row_offsets[row] + column_offsets[column];
    if (p.layout_c.packed) {
      Pack<Out> pack;
      MOP_UNROLL
      for (int e = 0; e < Pack<Out>::size; ++e)
        pack.at[e] = from_float<Out>(from[e * step] + (with_bias ? to_float(bias[e]) : 0.f));
      store16(at, pack);
    } else {
      *at = from_float<Out>(*from + (with_bias ? to_float(*bias) : 0.f));
    }
  }
}

// Grid: tiles of n fastest, then tiles of m, batch, parts of k.
template <class T>
MOP_KERNEL matmul_kernel(Matmul<T> p) {
  const TileShape shape = tile_shape(block_threads());
  const int rows = shape.rows(), columns = shape.columns();
  const i64 tiles_m = div_up(p.m.size, i64(rows)), tiles_n = div_up(p.n.size, i64(columns));
  i64 rest = block_index();
  const i64 n0 = rest % tiles_n * columns;
  rest /= tiles_n;
  const i64 m0 = rest % tiles_m * rows;
  rest /= tiles_m;
  const i64 batch = rest % p.batch.size, split = rest / p.batch.size;
  const i64 k_part = div_up(div_up(p.k.size, p.splits), i64(kDepth)) * kDepth;
  const i64 k_begin = split * k_part, k_end = least(p.k.size, k_begin + k_part);
  const int valid_rows = int(least(i64(rows), p.m.size - m0)), valid_columns = int(least(i64(columns), p.n.size - n0));

  i64* const m_first = shared_memory<i64>();  // offsets of the tile's rows in a, c, bias
  i64 *const m_second = m_first + rows, *const m_third = m_second + rows;
  i64 *const n_first = m_third + rows, *const n_second = n_first + columns, *const n_third = n_second + columns;
  i64 *const k_first = n_third + columns, *const k_second = k_first + kDepth;
  float* const tile = reinterpret_cast<float*>(k_second + kDepth);
  float *const tile_a = tile, *const tile_b = tile + kDepth * shape.row_pitch();

  const auto find_k_offsets = [&](i64 k0) {
    for (int k = thread_index(); k < kDepth; k += block_threads()) {
      k_first[k] = offset_of(k0 + k, p.k.inner, p.k.first);
      k_second[k] = offset_of(k0 + k, p.k.inner, p.k.second);
    }
  };
  for (int k = thread_index(); k < rows; k += block_threads()) {
    m_first[k] = offset_of(m0 + k, p.m.inner, p.m.first);
    m_second[k] = offset_of(m0 + k, p.m.inner, p.m.second);
    m_third[k] = offset_of(m0 + k, p.m.inner, p.m.third);
  }
  for (int k = thread_index(); k < columns; k += block_threads()) {
    n_first[k] = offset_of(n0 + k, p.n.inner, p.n.first);
    n_second[k] = offset_of(n0 + k, p.n.inner, p.n.second);
    n_third[k] = offset_of(n0 + k, p.n.inner, p.n.third);
  }
  find_k_offsets(k_begin);
  sync_threads();

  const T* const a = p.a + offset_of(batch, p.batch.inner, p.batch.first);
  const T* const b = p.b + offset_of(batch, p.batch.inner, p.batch.second);
  const int own_row = thread_index() / shape.side_n * kMicro, own_column = thread_index() % shape.side_n * kMicro;
  float sums[kMicro][kMicro] = {};
  for (i64 k0 = k_begin; k0 < k_end; k0 += kDepth) {
    const int depth = int(least(i64(kDepth), k_end - k0));
    read_tile(a, p.layout_a, rows, kDepth, valid_rows, depth, m_first, k_first, tile_a, 1, shape.row_pitch());
    read_tile(b, p.layout_b, kDepth, columns, depth, valid_columns, k_second, n_first, tile_b, shape.column_pitch(), 1);
    sync_threads();
    find_k_offsets(k0 + kDepth);
    MOP_UNROLL_BY(4)
    for (int k = 0; k < depth; ++k) {
      const Pack<float> left = load16(tile_a + k * shape.row_pitch() + own_row);
      const Pack<float> right = load16(tile_b + k * shape.column_pitch() + own_column);
      MOP_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        MOP_UNROLL
        for (int j = 0; j < kMicro; ++j) sums[i][j] += left.at[i] * right.at[j];
      }
    }
    sync_threads();
  }

  MOP_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    Pack<float> row;
    MOP_UNROLL
    for (int j = 0; j < kMicro; ++j) row.at[j] = sums[i][j];
    store16(tile + (own_row + i) * shape.column_pitch() + own_column, row);
  }
  sync_threads();
  const i64 at = offset_of(batch, p.batch.inner, p.batch.third);
  const bool with_bias = p.bias != nullptr && split == 0;
  if (p.c != nullptr)
    write_tile(p, p.c + at, with_bias, shape, valid_rows, valid_columns, tile, m_second, n_second, m_third, n_third);
  else
    write_tile(p, p.parts + split * p.c_size + at, with_bias, shape, valid_rows, valid_columns, tile, m_second,
               n_second, m_third, n_third);
}

}  // namespace mop
