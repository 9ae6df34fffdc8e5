// The sizes of a PHM map, and the names of the activations.
#pragma once

#include <stdint.h>

namespace mop {

typedef int64_t i64;

enum class Activation { relu, gelu, gelu_tanh, tanh, silu, identity };

struct PhmDims {
  i64 terms, rank, g_in, g_out, loc_in, loc_out;

  constexpr i64 j() const { return terms * rank; }
  constexpr i64 in() const { return g_in * loc_in; }
  constexpr i64 out() const { return g_out * loc_out; }
  constexpr i64 rule_size() const { return terms * g_in * g_out; }  // of a full rule
  constexpr i64 local_size() const { return terms * loc_in * loc_out; }
};

}  // namespace mop
