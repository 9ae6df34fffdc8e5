// The properties of a device that launches depend on: multiprocessors and their shared memory, read once per device.
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

// Every supported GPU (8.0 and later) gives a block this much shared memory. Where two ways of computing a result round
// differently, the choice follows from this number and not from the chip.
constexpr i64 kLeastShared = 99 * 1024;

struct Chip {
  i64 multiprocessors;
  i64 shared;        // bytes per multiprocessor: 228 KB on 9.0, 164 on 8.0, 100 on 8.6 and 8.9
  i64 block_shared;  // the most bytes of one block
  i64 reserved;      // bytes that the system takes per block

  // Returns the most bytes per block if `blocks` blocks are on a multiprocessor at once.
  i64 room(i64 blocks) const { return std::min(block_shared, (shared / blocks - reserved) / 16 * 16); }
};

#if defined(MOP_EMULATE)

// An H100, or the numbers that tests set, to reach second waves, chunks, and scratch in the GPU's memory at small
// sizes.
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
