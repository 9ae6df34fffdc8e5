// The instruction level of this machine, chosen once at load.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace mop {

namespace plain {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace plain

#if defined(MOP_WITH_AVX2)
namespace avx2 {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace avx2
#endif

namespace {

// MOP_KERNELS_CPU_LEVEL=plain makes the plain level testable on every machine.
bool use_avx2() {
#if defined(MOP_WITH_AVX2)
  const char* asked = std::getenv("MOP_KERNELS_CPU_LEVEL");
  if (asked && std::strcmp(asked, "plain") == 0) return false;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

const bool kAvx2 = use_avx2();

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
#if defined(MOP_WITH_AVX2)
  if (kAvx2) return avx2::kFloat;
#endif
  return plain::kFloat;
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(MOP_WITH_AVX2)
  if (kAvx2) return avx2::kDouble;
#endif
  return plain::kDouble;
}

const char* level_name() { return kAvx2 ? "avx2" : "plain"; }

}  // namespace mop
