// Registers the CPU kernels with the ops that mop_kernels/ops.py defines, and builds the module mop_kernels._C.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/ops.h"

STABLE_TORCH_LIBRARY_IMPL(mop_kernels, CPU, m) {
  m.impl("phm_weight_cpu", TORCH_BOX(&mop::phm_weight));
  m.impl("phm_weight_backward_cpu", TORCH_BOX(&mop::phm_weight_backward));
  m.impl("phm_linear_cpu", TORCH_BOX(&mop::phm_linear));
  m.impl("phm_linear_backward_cpu", TORCH_BOX(&mop::phm_linear_backward));
  m.impl("lowrank_phm_linear_cpu", TORCH_BOX(&mop::lowrank_phm_linear));
  m.impl("lowrank_phm_linear_backward_cpu", TORCH_BOX(&mop::lowrank_phm_linear_backward));
  m.impl("mop_ffn_cpu", TORCH_BOX(&mop::mop_ffn));
  m.impl("mop_ffn_backward_cpu", TORCH_BOX(&mop::mop_ffn_backward));
}

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = MOP_COMPILER;
  info["torch_built_with"] = MOP_TORCH_VERSION;
  info["torch_abi_target"] = "2.10";
  info["vector_levels"] = MOP_LEVELS;
  info["vector_level_here"] = mop::level_name();
  info["cuda"] = pybind11::none();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled CPU kernels of mop_kernels; importing it registers their ops with torch.";
  m.def("build_info", &build_info, "What this binary was built with, and the vector level it uses here.");
}
