// What a launch asks of its device: the multiprocessors and their shared memory, read once per device.
#pragma once

#include <algorithm>

#include "../tensors.h"
#include "device.h"

#if defined(MOP_EMULATE)
#include <cstdlib>
#else
#include <cuda_runtime.h>

#include <mutex>
#endif

namespace mop {

// Every GPU that is served (8.0 and later) gives a block this much shared memory. Which of two ways of computing a
// result is taken, where they round differently, follows from it and not from the chip.
constexpr i64 kLeastShared = 99 * 1024;

struct Chip {
  i64 multiprocessors;
  i64 shared;        // bytes of a multiprocessor, 228 KB on 9.0, 164 on 8.0, 100 on 8.6 and 8.9
  i64 block_shared;  // and the most that one block may have
  i64 reserved;      // bytes of it that the system takes for each block

  // The most bytes with which `blocks` blocks are on a multiprocessor at once.
  i64 room(i64 blocks) const { return std::min(block_shared, (shared / blocks - reserved) / 16 * 16); }
};

#if defined(MOP_EMULATE)

// An H100, or what tests set, which reach second waves, chunks and scratch in the GPU's memory with small sizes.
inline Chip chip_of(int) {
  const auto number = [](const char* name, i64 otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : i64(std::atoll(text));
  };
  const i64 bytes = number("MOP_KERNELS_EMULATED_SHARED_BYTES", 227 * 1024);
  return {number("MOP_KERNELS_EMULATED_MULTIPROCESSORS", 132), bytes + 1024, bytes, 1024};
}

#else

inline const Chip& chip_of(int device) {
  constexpr int kMostDevices = 128;
  static std::once_flag asked[kMostDevices];
  static Chip chips[kMostDevices];
  MOP_GUARD(device >= 0 && device < kMostDevices);
  std::call_once(asked[device], [device] {
    const auto ask = [device](cudaDeviceAttr attribute) {
      int value = 0;
      MOP_GUARD(cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess);
      return i64(value);
    };
    chips[device] = {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                     ask(cudaDevAttrMaxSharedMemoryPerBlockOptin), ask(cudaDevAttrReservedSharedMemoryPerBlock)};
  });
  return chips[device];
}

#endif

}  // namespace mop
