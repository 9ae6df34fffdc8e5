// Products of a warp on the tensor cores: mma.sync m16n8k16 of a half precision, sums in float.
//
// On the host an emulated thread is a whole warp. It runs the 32 lanes itself, each with its own registers, in the
// layout of PTX for ldmatrix and mma. So the host also checks the registers that a kernel reads and loads.
#pragma once

#include <type_traits>

#include "device.h"

namespace mop {

#if defined(MOP_EMULATE)
constexpr int kLanes = 32;  // a thread has the registers of all lanes
MOP_DEVICE int warp_index() { return thread_index(); }
MOP_DEVICE int num_warps() { return block_threads(); }
#else
constexpr int kLanes = 1;
MOP_DEVICE int warp_index() { return thread_index() / 32; }
MOP_DEVICE int num_warps() { return block_threads() / 32; }
#endif

// The lanes of this thread: itself, or on the host its whole warp. `own` counts them.
template <class Function>
MOP_DEVICE void for_lanes(const Function& function) {
#if defined(MOP_EMULATE)
  for (int own = 0; own < kLanes; ++own) function(own, own);
#else
  function(0, thread_index() % 32);
#endif
}

// Four 8 x 8 matrices of a half precision, two elements per register.
struct Fragment {
  uint32_t at[kLanes][4];
};

// Sums of 16 x 8: rows lane / 4 and that + 8, columns lane % 4 * 2 and that + 1.
struct Sums16x8 {
  float at[kLanes][4];
};

// row(matrix, k): the address of the eight elements of row k of a matrix, aligned to 16 bytes. Lane l has the elements
// (l / 4, l % 4 * 2) and (l / 4, l % 4 * 2 + 1) of each matrix, or of its transpose. All lanes take part.
template <bool kTransposed, class Row>
MOP_DEVICE void load_matrices(Fragment& to, const Row& row) {
#if defined(MOP_EMULATE)
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[8][8];
    for (int k = 0; k < 8; ++k) {
      const auto* const from = row(matrix, k);
      if (!is_aligned16(from)) emulated::fail("load_matrices of a row that is not aligned");
      std::memcpy(elements[k], from, sizeof elements[k]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint32_t low = kTransposed ? elements[c][r] : elements[r][c];
      const uint32_t high = kTransposed ? elements[c + 1][r] : elements[r][c + 1];
      to.at[lane][matrix] = low | high << 16;
    }
  }
#else
  const int lane = thread_index() % 32;
  const unsigned from = unsigned(__cvta_generic_to_shared(row(lane / 8, lane % 8)));
  uint32_t* const r = to.at[0];
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#endif
}

// sums += A B. A, 16 x 16: matrices (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15). B, 16 x 8, transposed,
// a lane's elements lie along k: matrices `half` * 2 (k 0-7) and the next (k 8-15) of b.
template <class T>
MOP_DEVICE void multiply_add(Sums16x8& sums, const Fragment& a, const Fragment& b, int half) {
#if defined(MOP_EMULATE)
  const auto value = [](uint32_t pair, int e) { return to_float(T{uint16_t(pair >> 16 * e)}); };
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 2; ++e) {
      for (int matrix = 0; matrix < 4; ++matrix)
        left[matrix % 2 * 8 + lane / 4][matrix / 2 * 8 + lane % 4 * 2 + e] = value(a.at[lane][matrix], e);
      for (int matrix = 0; matrix < 2; ++matrix)
        right[matrix * 8 + lane % 4 * 2 + e][lane / 4] = value(b.at[lane][half * 2 + matrix], e);
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e)
      for (int k = 0; k < 16; ++k) sums.at[lane][e] += left[lane / 4 + e / 2 * 8][k] * right[k][lane % 4 * 2 + e % 2];
#else
  float* const s = sums.at[0];
  const uint32_t* const x = a.at[0];
  const uint32_t y0 = b.at[0][half * 2], y1 = b.at[0][half * 2 + 1];
  if constexpr (std::is_same_v<T, Bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
#endif
}

// Adds two neighbouring elements of a half precision; the first is at a multiple of 4 bytes.
template <class T>
MOP_DEVICE void add_two(const T* from, float& first, float& second) {
  uint32_t pair;
#if defined(MOP_EMULATE)
  if (reinterpret_cast<uintptr_t>(from) % 4 != 0) emulated::fail("add_two of an address that is not aligned");
  std::memcpy(&pair, from, sizeof pair);
#else
  pair = *reinterpret_cast<const uint32_t*>(from);
#endif
  first += to_float(T{uint16_t(pair)}), second += to_float(T{uint16_t(pair >> 16)});
}

// Stores two neighbouring elements of a half precision.
template <class T>
MOP_DEVICE void store_two(T* to, float first, float second) {
#if defined(MOP_EMULATE)
  const uint32_t pair = from_float<T>(first).bits | uint32_t(from_float<T>(second).bits) << 16;
  if (reinterpret_cast<uintptr_t>(to) % 4 != 0) emulated::fail("store_two to an address that is not aligned");
  std::memcpy(to, &pair, sizeof pair);
#else
  uint32_t pair;
  if constexpr (std::is_same_v<T, Bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  *reinterpret_cast<uint32_t*>(to) = pair;
#endif
}

// A matrix in shared memory: rows lie `stride` elements apart and start at 16 bytes.
template <class T>
struct Rows {
  const T* data;
  int stride;
};

// Calls store(batch, m, n, sums at (m, n) and (m, n + 1)) for the sums over k of A[batch](m, k) B[batch](k, n). Warps
// take 16 x 16 results at a time, each an even share in a row. Rows of A run along k, or along m if kATransposed, with
// zeros up to whole eights. Rows of B run along n and are whole eights. zeros: eight zeros, read in place of elements
// outside.
template <bool kATransposed, class T, class A, class B, class Store>
MOP_DEVICE void warp_product(int batches, int size_m, int size_n, int size_k, const A& a_of, const B& b_of,
                             const T* zeros, const Store& store) {
  const int tiles_m = div_up(size_m, 16), tiles_n = div_up(size_n, 16), tiles = batches * tiles_m * tiles_n;
  const int end = tiles * (warp_index() + 1) / num_warps();
  MOP_UNROLL_BY(1)
  for (int tile = tiles * warp_index() / num_warps(); tile < end;) {
    const int strip = tile / tiles_n, batch = strip / tiles_m, m0 = (strip - batch * tiles_m) * 16;
    const int first = tile - strip * tiles_n, last = least(tiles_n, first + end - tile);
    tile += last - first;
    const Rows<T> left = a_of(batch), right = b_of(batch);
    Fragment a, b;
    const auto load_a = [&](int k0) {
      load_matrices<kATransposed>(a, [&](int matrix, int row) {
        const int m = m0 + matrix % 2 * 8, k = k0 + matrix / 2 * 8;
        const int outer = (kATransposed ? k : m) + row, inner = kATransposed ? m : k;
        const bool inside = outer < (kATransposed ? size_k : size_m) && inner < (kATransposed ? size_m : size_k);
        return inside ? left.data + (outer * left.stride + inner) : zeros;
      });
    };
    const auto load_b = [&](int k0, int n0) {
      load_matrices<true>(b, [&](int matrix, int row) {
        const int k = k0 + matrix % 2 * 8 + row, n = n0 + matrix / 2 * 8;
        return k < size_k && n < size_n ? right.data + (k * right.stride + n) : zeros;
      });
    };
    load_a(0);
    MOP_UNROLL_BY(1)
    for (int n0 = first * 16; n0 < last * 16; n0 += 16) {
      Sums16x8 sums[2] = {};
      load_b(0, n0);
      multiply_add<T>(sums[0], a, b, 0);
      multiply_add<T>(sums[1], a, b, 1);
      if (size_k > 16) {
        MOP_UNROLL_BY(1)
        for (int k0 = 16; k0 < size_k; k0 += 16) {
          load_a(k0);
          load_b(k0, n0);
          multiply_add<T>(sums[0], a, b, 0);
          multiply_add<T>(sums[1], a, b, 1);
        }
        if (n0 + 16 < last * 16) load_a(0);
      }
      for_lanes([&](int own, int lane) {
        const bool two = n0 + 8 < size_n;
        const int n = n0 + lane % 4 * 2;
        MOP_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int m = m0 + half * 8 + lane / 4;
          if (m >= size_m) continue;
          store(batch, m, n, sums[0].at[own][half * 2], sums[0].at[own][half * 2 + 1]);
          if (two) store(batch, m, n + 8, sums[1].at[own][half * 2], sums[1].at[own][half * 2 + 1]);
        }
      });
    }
  }
}

}  // namespace mop
