// The features that only a GPU has, as helpers for kernels, each with a twin on the host.
//
// Kernels (*_kernel.cuh) are templates on raw pointers that use nothing of CUDA but these helpers. nvcc compiles them
// for a GPU; g++ -x c++ -DMOP_EMULATE compiles the same text for the host, where launch.h runs one host thread for each
// CUDA thread. On the host sync_threads is a barrier, and shared memory is a heap buffer of exactly the requested size,
// filled with NaN. So AddressSanitizer finds an overrun, and ThreadSanitizer a missing barrier.
//
//   template <class T>
//   MOP_KERNEL scale_kernel(const T* x, float by, T* y, i64 size) {
//     for (i64 k = block_index() * block_threads() + thread_index(); k < size; k += num_blocks() * block_threads())
//       y[k] = from_float<T>(by * to_float(x[k]));
//   }
//   ...
//   const Launch launch(x);  // launch.h: guards the device of x, takes its current stream
//   launch("scale", scale_kernel<T>, blocks, 256, 0, in<T>(x), 2.f, out<T>(y), x.numel());
//
// Rules for kernels:
// - A kernel is correct for any block_threads(); the host runs it with kEmulatedThreads.
// - Every thread of a block meets the same sync_threads() calls, and no thread leaves before the last call.
// - Indices and offsets are i64, except offsets into shared memory.
// - No atomics, and no warp instructions outside device_mma.h.
// - Sums are in float, in an order that depends only on the sizes.
// - Floating-point functions have the same name in <cmath> and in CUDA: expf, tanhf, erff.
#pragma once

#include "../dims.h"

#if defined(MOP_EMULATE)

#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define MOP_KERNEL void
#define MOP_BLOCKS(threads, blocks)  // this many blocks of this many threads must fit on a multiprocessor
#define MOP_DEVICE inline
#define MOP_BOTH inline  // on the host and in kernels
#define MOP_UNROLL
#define MOP_UNROLL_BY(count)

namespace mop::emulated {

struct Thread {
  i64 block, blocks;
  int index, threads;
  void* shared;
  void (*wait)(void*);  // at the barrier of the block
  void* barrier;
};
inline thread_local Thread thread;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: block %lld, thread %d: %s\n", (long long)thread.block, thread.index, what);
  std::abort();
}

}  // namespace mop::emulated

#else

#include <cassert>

#define MOP_KERNEL __global__ void
#define MOP_BLOCKS(threads, blocks) __launch_bounds__(threads, blocks)
#define MOP_DEVICE __device__ __forceinline__
#define MOP_BOTH __host__ __device__ __forceinline__
#define MOP_UNROLL _Pragma("unroll")
#define MOP_PRAGMA(text) _Pragma(#text)
#define MOP_UNROLL_BY(count) MOP_PRAGMA(unroll count)

#endif

namespace mop {

// Blocks and grids have one dimension; kernels split their indices.
#if defined(MOP_EMULATE)
MOP_DEVICE int thread_index() { return emulated::thread.index; }
MOP_DEVICE int block_threads() { return emulated::thread.threads; }
MOP_DEVICE i64 block_index() { return emulated::thread.block; }
MOP_DEVICE i64 num_blocks() { return emulated::thread.blocks; }
MOP_DEVICE void sync_threads() { emulated::thread.wait(emulated::thread.barrier); }
#else
MOP_DEVICE int thread_index() { return threadIdx.x; }
MOP_DEVICE int block_threads() { return blockDim.x; }
MOP_DEVICE i64 block_index() { return blockIdx.x; }
MOP_DEVICE i64 num_blocks() { return gridDim.x; }
MOP_DEVICE void sync_threads() { __syncthreads(); }
#endif

// Ends the kernel. The line of assert() is printed, and the next call that waits fails with "device-side assert
// triggered". printf could print a value, but it would give every kernel a stack frame.
#if defined(MOP_EMULATE)
[[noreturn]] inline void stop(const char* message) { emulated::fail(message); }
#else
MOP_DEVICE void stop(const char* message) { __assert_fail(message, "mop_kernels", 0, "stop"); }
#endif

// Returns the shared memory of the block. The launch gives its size; it is aligned to 16 bytes.
template <class T>
MOP_DEVICE T* shared_memory() {
#if defined(MOP_EMULATE)
  return static_cast<T*>(emulated::thread.shared);
#else
  extern __shared__ __align__(16) unsigned char mop_shared[];
  return reinterpret_cast<T*>(mop_shared);
#endif
}

// The two half precisions: bits only, arithmetic is in float.
struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

MOP_DEVICE float to_float(float x) { return x; }

MOP_DEVICE float to_float(Bfloat16 x) {
#if defined(MOP_EMULATE)
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#else
  return __uint_as_float(uint32_t(x.bits) << 16);
#endif
}

MOP_DEVICE float to_float(Half x) {
#if defined(MOP_EMULATE)
  return torch::headeronly::detail::fp16_ieee_to_fp32_value(x.bits);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#endif
}

// Rounds to nearest, ties to even.
template <class T>
MOP_DEVICE T from_float(float x);

template <>
MOP_DEVICE float from_float<float>(float x) {
  return x;
}

template <>
MOP_DEVICE Bfloat16 from_float<Bfloat16>(float x) {
#if defined(MOP_EMULATE)
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#else
  Bfloat16 value;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
  return value;
#endif
}

template <>
MOP_DEVICE Half from_float<Half>(float x) {
#if defined(MOP_EMULATE)
  return {torch::headeronly::detail::fp16_ieee_from_fp32_value(x)};
#else
  Half value;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
  return value;
#endif
}

// 16 bytes: a thread reads and writes them at once where addresses allow it.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T at[size];
};

template <class T>
MOP_BOTH bool is_aligned16(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <class T>
MOP_DEVICE Pack<T> load16(const T* from) {
  Pack<T> pack;
#if defined(MOP_EMULATE)
  if (!is_aligned16(from)) emulated::fail("load16 of an address that is not aligned");
  std::memcpy(&pack, from, sizeof pack);
#else
  *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(from);
#endif
  return pack;
}

template <class T>
MOP_DEVICE void store16(T* to, const Pack<T>& pack) {
#if defined(MOP_EMULATE)
  if (!is_aligned16(to)) emulated::fail("store16 to an address that is not aligned");
  std::memcpy(to, &pack, sizeof pack);
#else
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&pack);
#endif
}

// Returns four elements as floats. The address is aligned to their size: 16 bytes of float, 8 of a half precision.
template <class T>
MOP_DEVICE Pack<float> load4(const T* from) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return load16(from);
  } else {
    struct alignas(8) Raw {
      T at[4];
    } raw;
#if defined(MOP_EMULATE)
    if (reinterpret_cast<uintptr_t>(from) % 8 != 0) emulated::fail("load4 of an address that is not aligned");
    std::memcpy(&raw, from, sizeof raw);
#else
    *reinterpret_cast<uint2*>(&raw) = *reinterpret_cast<const uint2*>(from);
#endif
    return {{to_float(raw.at[0]), to_float(raw.at[1]), to_float(raw.at[2]), to_float(raw.at[3])}};
  }
}

template <class T>
MOP_DEVICE void store4(T* to, const Pack<float>& pack) {
  if constexpr (sizeof(T) == sizeof(float)) {
    store16(to, pack);
  } else {
    struct alignas(8) Raw {
      T at[4];
    } raw{{from_float<T>(pack.at[0]), from_float<T>(pack.at[1]), from_float<T>(pack.at[2]), from_float<T>(pack.at[3])}};
#if defined(MOP_EMULATE)
    if (reinterpret_cast<uintptr_t>(to) % 8 != 0) emulated::fail("store4 to an address that is not aligned");
    std::memcpy(to, &raw, sizeof raw);
#else
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(&raw);
#endif
  }
}

// Returns 1 / x, with an error of at most one unit in the last place.
MOP_DEVICE float reciprocal(float x) {
#if defined(MOP_EMULATE)
  return 1.f / x;
#else
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
#endif
}

template <class T>
MOP_BOTH T div_up(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
MOP_BOTH T least(T a, T b) {
  return a < b ? a : b;
}

}  // namespace mop
