// Registers the CUDA kernels with the ops that mop_kernels/ops.py defines, and builds the module mop_kernels._C_cuda.
// Under MOP_EMULATE it builds a library of the same ops for CPU tensors.
#if defined(MOP_EMULATE)
#define MOP_KEY CPU
#else
#include "../python_module.h"
#define MOP_KEY CUDA
#define MOP_ON_CUDA  // for tensors.h: nvcc does not compile this file
#endif

#include "../ops.h"

STABLE_TORCH_LIBRARY_IMPL(mop_kernels, MOP_KEY, m) { mop::register_ops(m, "cuda"); }

#if !defined(MOP_EMULATE)

PyMODINIT_FUNC PyInit__C_cuda() {
  return mop::python_module("mop_kernels._C_cuda",
                            "The compiled CUDA kernels of mop_kernels; importing it registers their ops with torch.",
                            nullptr);
}

#endif
