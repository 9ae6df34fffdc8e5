// Copies to shared memory while a thread computes: cp.async, in groups.
//
// A thread copies, closes a group with commit_copies(), and later waits for it. Other threads see the copies after the
// next sync_threads(). On the host, copy_async() fills the memory with NaN, and wait_for_copies() copies. So a test
// shows a wait that is missing, or that leaves one group too many.
#pragma once

#include "device.h"

#if defined(MOP_EMULATE)

#include <deque>
#include <vector>

namespace mop::emulated {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

inline thread_local std::vector<Copy> open_copies;
inline thread_local std::deque<std::vector<Copy>> copy_groups;

inline void finish_copies(size_t groups_left) {
  for (; copy_groups.size() > groups_left; copy_groups.pop_front())
    for (const Copy& copy : copy_groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
}

// At the end of a block: the next block takes its memory.
inline void check_copies() {
  bool all = open_copies.empty();
  for (const std::vector<Copy>& group : copy_groups) all = all && group.empty();
  if (!all) fail("a copy was not waited for");
  copy_groups.clear();
}

}  // namespace mop::emulated

#endif

namespace mop {

// Copies `count` elements: 16 bytes, which bypass the first-level cache, or 8. Both addresses are aligned to that size.
template <int count, class T>
MOP_DEVICE void copy_async(T* to, const T* from) {
  constexpr int bytes = count * sizeof(T);
  static_assert(bytes == 16 || bytes == 8);
#if defined(MOP_EMULATE)
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    emulated::fail("copy_async of an address that is not aligned");
  std::memset(to, 0xff, bytes);
  emulated::open_copies.push_back({to, from, bytes});
#else
  const unsigned shared = unsigned(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(from) : "memory");
#endif
}

MOP_DEVICE void commit_copies() {
#if defined(MOP_EMULATE)
  emulated::copy_groups.push_back(std::move(emulated::open_copies));
  emulated::open_copies.clear();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of this thread except the newest `left`.
template <int left>
MOP_DEVICE void wait_for_copies() {
#if defined(MOP_EMULATE)
  emulated::finish_copies(left);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

}  // namespace mop
