// Kernels with one mistake each, named by the first argument, on the emulation of csrc/cuda/launch.h.
#include <cmath>
#include <cstring>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/mop_ffn_products.cuh"

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

// Copies four floats for each thread in two groups, and reads what a neighbour copied in the first.
void copies(const float* from, int groups_left, bool wait, bool wait_for_all) {
  float* const shared = shared_memory<float>();
  const int thread = thread_index();
  for (int group = 0; group < 2; ++group) {
    copy_async<4>(shared + (group * block_threads() + thread) * 4, from);
    commit_copies();
  }
  if (groups_left == 0) wait_for_copies<0>();
  if (groups_left == 1) wait_for_copies<1>();
  if (wait) sync_threads();
  const float seen = shared[(thread + 1) % block_threads() * 4];
  const float newest = shared[block_threads() * 4];
  if (thread == 0) result = groups_left == 0 ? newest : seen;
  sync_threads();
  if (wait_for_all) wait_for_copies<0>();
}

// Quotients by reciprocals that are one beside the nearest float, as a GPU's may be: 1 if all are right below 2^21.
float quotients() {
  constexpr int kEnd = 1 << 21;
  for (int n = 1; n < kEnd; n += n < 4096 ? 1 : n / 64) {
    ffn::Divisor<true> by(n);
    const float nearest = by.inverse;
    for (const float inverse : {nearest, std::nextafterf(nearest, 0.f), std::nextafterf(nearest, 2.f)}) {
      by.inverse = inverse;
      const int last = (kEnd - 1) / n;
      for (const int quotient : {0, 1, 2, 3, last / 3, last / 2, last - 1, last})
        for (const int rest : {0, n / 2, n - 1}) {
          const int k = quotient * n + rest;
          if (quotient >= 0 && k < kEnd && by.quotient(k) != quotient) return 0.f;
        }
    }
  }
  return 1.f;
}

void run(const char* mistake) {
  constexpr int kThreads = kEmulatedThreads;
  const auto is = [&](const char* name) { return std::strcmp(mistake, name) == 0; };
  alignas(16) const float ones[8] = {1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f};
  EmulatedBlock block(kThreads, 3, kThreads * 8 * sizeof(float));
  block.run([&] {
    if (is("none")) neighbour(kThreads, true);
    if (is("no barrier")) neighbour(kThreads, false);
    if (is("copies")) copies(ones, 0, true, true);
    if (is("older copies")) copies(ones, 1, true, true);
    if (is("no wait for copies")) copies(ones, 2, true, true);
    if (is("no barrier after copies")) copies(ones, 0, false, true);
    if (is("copies at the end")) copies(ones, 1, true, false);
    if (is("misaligned copy")) copies(ones + 1, 0, true, true);
    if (is("quotients") && thread_index() == 0) result = quotients();
    if (is("stop")) stop("experts must be distinct");
    if (is("overrun")) shared_memory<float>()[8 * kThreads + thread_index()] = 1.f;
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
