// Registers the CUDA kernels with the ops that mop_kernels/ops.py defines, and builds the module mop_kernels._C_cuda;
// under MOP_EMULATE a library of the same ops for CPU tensors.
#include "../ops.h"

#if defined(MOP_EMULATE)
#define MOP_KEY CPU
#else
#include <pybind11/pybind11.h>
#define MOP_KEY CUDA
#endif

STABLE_TORCH_LIBRARY_IMPL(mop_kernels, MOP_KEY, m) {
  m.impl("phm_weight_cuda", TORCH_BOX(&mop::Contiguous<&mop::phm_weight>::call));
  m.impl("phm_weight_backward_cuda", TORCH_BOX(&mop::AfterGradient<&mop::phm_weight_backward>::call));
  m.impl("phm_linear_cuda", TORCH_BOX(&mop::Contiguous<&mop::phm_linear>::call));
  m.impl("phm_linear_backward_cuda", TORCH_BOX(&mop::AfterGradient<&mop::phm_linear_backward>::call));
  m.impl("lowrank_phm_linear_cuda", TORCH_BOX(&mop::Contiguous<&mop::lowrank_phm_linear>::call));
  m.impl("lowrank_phm_linear_backward_cuda", TORCH_BOX(&mop::AfterGradient<&mop::lowrank_phm_linear_backward>::call));
  m.impl("mop_ffn_cuda", TORCH_BOX(&mop::Contiguous<&mop::mop_ffn>::call));
  m.impl("mop_ffn_backward_cuda", TORCH_BOX(&mop::AfterGradient<&mop::mop_ffn_backward>::call));
}

#if !defined(MOP_EMULATE)

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "The compiled CUDA kernels of mop_kernels; importing it registers their ops with torch.";
}

#endif
