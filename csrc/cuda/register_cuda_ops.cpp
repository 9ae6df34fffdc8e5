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
  m.impl("phm_weight_cuda", TORCH_BOX(&mop::phm_weight));
  m.impl("phm_weight_backward_cuda", TORCH_BOX(&mop::phm_weight_backward));
  m.impl("phm_linear_cuda", TORCH_BOX(&mop::phm_linear));
  m.impl("phm_linear_backward_cuda", TORCH_BOX(&mop::phm_linear_backward));
  m.impl("lowrank_phm_linear_cuda", TORCH_BOX(&mop::lowrank_phm_linear));
  m.impl("lowrank_phm_linear_backward_cuda", TORCH_BOX(&mop::lowrank_phm_linear_backward));
  m.impl("mop_ffn_cuda", TORCH_BOX(&mop::mop_ffn));
  m.impl("mop_ffn_backward_cuda", TORCH_BOX(&mop::mop_ffn_backward));
}

#if !defined(MOP_EMULATE)

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "The compiled CUDA kernels of mop_kernels; importing it registers their ops with torch.";
}

#endif
