// How the ops launch kernels: dtypes, and `Launch`, which has the device, the stream and the checks. Under MOP_EMULATE
// a launch runs on the host (device.h), and tensors are on the CPU.
#pragma once

#include <algorithm>
#include <utility>

#include "../tensors.h"
#include "chip.h"
#include "device.h"
#include "device_async.h"

#if defined(MOP_EMULATE)
#include <atomic>
#include <barrier>
#include <thread>
#else
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace mop {

constexpr int kEmulatedThreads = 4;

// Returns the threads of a block: `wanted` on a GPU, few on the host. Tile sizes that depend on it must use this
// function.
inline int threads_of_block(int wanted) {
#if defined(MOP_EMULATE)
  return std::min(wanted, kEmulatedThreads);
#else
  return wanted;
#endif
}

inline Tensor empty_float(const Tensor& like, std::initializer_list<i64> sizes) {
  return empty(like, sizes, ScalarType::Float);
}

template <>
struct DtypeOf<Bfloat16> {
  static constexpr ScalarType kDtype = ScalarType::BFloat16;
};
template <>
struct DtypeOf<Half> {
  static constexpr ScalarType kDtype = ScalarType::Half;
};

template <class Function>
auto by_dtype(const Tensor& t, const Function& function) {
  return by_dtype_among<float, Bfloat16, Half>(t, function);
}

#if defined(MOP_EMULATE)

// The threads of one block. They run all blocks of a launch one after the other.
class EmulatedBlock {
 public:
  EmulatedBlock(int threads, i64 blocks, i64 shared_bytes)
      : threads_(threads), blocks_(blocks), bytes_(shared_bytes), barrier_(threads, Check{this}) {}

  template <class Body>
  void run(const Body& body) {
    std::vector<std::thread> others;
    for (int index = 1; index < threads_; ++index) others.emplace_back([&, index] { run_thread(index, body); });
    run_thread(0, body);
    for (std::thread& other : others) other.join();
  }

 private:
  struct Check {  // when all threads have arrived: either all are at the end of the block, or none is
    EmulatedBlock* block;
    void operator()() noexcept {
      const int ended = block->ended_.exchange(0);
      if (ended != 0 && ended != block->threads_) emulated::fail("some threads left while others wait at a barrier");
    }
  };

  template <class Body>
  void run_thread(int index, const Body& body) {
    for (i64 block = 0; block < blocks_; ++block) {
      if (index == 0) {
        std::free(shared_);
        shared_ = std::malloc(bytes_);
        std::memset(shared_, 0xff, bytes_);
      }
      barrier_.arrive_and_wait();
      emulated::thread = {block,   blocks_,
                          index,   threads_,
                          shared_, [](void* b) { static_cast<EmulatedBlock*>(b)->barrier_.arrive_and_wait(); },
                          this};
      body();
      emulated::check_copies();
      ++ended_;
      barrier_.arrive_and_wait();
    }
    if (index == 0) std::free(shared_);
  }

  const int threads_;
  const i64 blocks_, bytes_;
  void* shared_ = nullptr;
  std::atomic<int> ended_{0};
  std::barrier<Check> barrier_;
};

#endif

// Guards the device of a tensor for its lifetime, and launches on that device's current stream.
class Launch {
 public:
#if defined(MOP_EMULATE)
  explicit Launch(const Tensor& t) : chip_(chip_of(0)) { MOP_GUARD(t.is_cpu()); }
#else
  explicit Launch(const Tensor& t) : guard_(t.get_device_index()), chip_(chip_of(t.get_device_index())) {
    void* stream = nullptr;
    MOP_GUARD(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == AOTI_TORCH_SUCCESS);
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif

  const Chip& chip() const { return chip_; }

  // Launches kernel(arguments...) on `blocks` blocks, possibly none, of threads_of_block(threads) threads.
  template <class... Parameters, class... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), i64 blocks, int threads, i64 shared_bytes,
                  Arguments... arguments) const {
    if (blocks == 0) return;
    constexpr i64 kWithoutAsking = 48 * 1024;
    MOP_GUARD(blocks > 0 && blocks < i64(1) << 31 && shared_bytes <= std::max(kWithoutAsking, chip_.block_shared));
#if defined(MOP_EMULATE)
    (void)name;
    EmulatedBlock(threads_of_block(threads), blocks, shared_bytes).run([&] { kernel(arguments...); });
#else
    cudaError_t error = cudaSuccess;
    if (shared_bytes > kWithoutAsking)  // always the most: another thread may launch the same kernel with another size
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(chip_.block_shared));
    cudaLaunchConfig_t config = {};
    config.gridDim = unsigned(blocks);
    config.blockDim = threads_of_block(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
    STD_TORCH_CHECK(error == cudaSuccess, "mop_kernels could not launch the CUDA kernel ", name, " (", blocks,
                    " blocks of ", threads, " threads, ", shared_bytes,
                    " bytes of shared memory): ", cudaGetErrorString(error));
#endif
  }

 private:
#if defined(MOP_EMULATE)
  const Chip chip_;
#else
  torch::stable::accelerator::DeviceGuard guard_;
  const Chip& chip_;
  cudaStream_t stream_;
#endif
};

}  // namespace mop
