// The instruction level of this machine, chosen once at load.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace mop {

#define MOP_DECLARE_LEVEL(name)         \
  namespace name {                      \
  extern const Kernels<float> kFloat;   \
  extern const Kernels<double> kDouble; \
  }
MOP_DECLARE_LEVEL(plain)
#if defined(MOP_X86_LEVELS)
MOP_DECLARE_LEVEL(avx2)
MOP_DECLARE_LEVEL(avx512)
#endif

namespace {

struct Level {
  const char* name;
  const Kernels<float>& of_float;
  const Kernels<double>& of_double;
};

// MOP_KERNELS_CPU_LEVEL=plain or avx2 makes a lower level testable on every machine; avx512 takes it on processors that
// are not known to gain by it.
Level choose_level() {
#if defined(MOP_X86_LEVELS)
  const char* const variable = std::getenv("MOP_KERNELS_CPU_LEVEL");
  const auto asked = [&](const char* name) { return variable && std::strcmp(variable, name) == 0; };
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  // Zen 4 multiplies 512 bits in two halves, and was slower; before Ice Lake (VBMI2) 512 bits lowered the clock
  const bool gains = __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512vbmi2");
  if (has_avx512 && (asked("avx512") || (gains && !asked("avx2") && !asked("plain"))))
    return {"avx512", avx512::kFloat, avx512::kDouble};
  if (has_avx2 && !asked("plain")) return {"avx2", avx2::kFloat, avx2::kDouble};
#endif
  return {"plain", plain::kFloat, plain::kDouble};
}

const Level& level() {
  static const Level chosen = choose_level();
  return chosen;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return level().of_float;
}

template <>
const Kernels<double>& kernels<double>() {
  return level().of_double;
}

const char* level_name() { return level().name; }

}  // namespace mop
