// Kernels with one mistake each, named by the first argument, on the emulation of csrc/cuda/launch.h.
#include <cstring>

#include "../../csrc/cuda/launch.h"

using namespace mop;

namespace {

float result;

// Each thread writes its element, then reads its neighbour's.
void neighbour(int elements, bool wait) {
  float* const shared = shared_memory<float>();
  const int thread = thread_index();
  if (thread < elements) shared[thread] = float(thread);
  if (wait) sync_threads();
  const float seen = shared[(thread + 1) % elements];
  if (thread == 0) result = seen;
}

void run(const char* mistake) {
  constexpr int kThreads = kEmulatedThreads;
  const auto is = [&](const char* name) { return std::strcmp(mistake, name) == 0; };
  EmulatedBlock block(kThreads, 3, kThreads * sizeof(float));
  block.run([&] {
    if (is("none")) neighbour(kThreads, true);
    if (is("no barrier")) neighbour(kThreads, false);
    if (is("overrun")) shared_memory<float>()[kThreads + thread_index()] = 1.f;
    if (is("some leave") && thread_index() != 1) sync_threads();
    if (is("misaligned")) load16(shared_memory<float>() + 1);
    if (is("uninitialised") && thread_index() == 0) result = shared_memory<float>()[0];
  });
}

}  // namespace

int main(int, char** arguments) {
  run(arguments[1]);
  std::printf("%g\n", result);
}
