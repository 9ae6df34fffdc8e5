// Registers the CPU kernels with the ops that mop_kernels/ops.py defines, and builds the module mop_kernels._C.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu_ops.h"

STABLE_TORCH_LIBRARY_FRAGMENT(mop_kernels, m) {
  m.def("softmax_piece(Tensor(a!) logits, Tensor(b!) peak, Tensor(c!) total) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mop_kernels, CPU, m) {
  m.impl("softmax_piece", TORCH_BOX(&mop::softmax_piece));
  mop::register_ops(m, "cpu");
  m.impl("local_linear_cpu", TORCH_BOX(&mop::Contiguous<&mop::local_linear>::call));
  m.impl("local_linear_backward_cpu", TORCH_BOX(&mop::AfterGradient<&mop::local_linear_backward>::call));
  m.impl("attempt_mix_cpu", TORCH_BOX(&mop::Contiguous<&mop::attempt_mix>::call));
  m.impl("attempt_mix_backward_cpu", TORCH_BOX(&mop::AfterTwoGradients<&mop::attempt_mix_backward>::call));
  m.impl("prefix_attention_cpu", TORCH_BOX(&mop::Contiguous<&mop::prefix_attention>::call));
  m.impl("prefix_attention_backward_cpu", TORCH_BOX(&mop::AfterGradient<&mop::prefix_attention_backward>::call));
  m.impl("rms_norm_cpu", TORCH_BOX(&mop::Contiguous<&mop::rms_norm>::call));
  m.impl("rms_norm_backward_cpu", TORCH_BOX(&mop::Contiguous<&mop::rms_norm_backward>::call));
  m.impl("dropout_add_cpu", TORCH_BOX(&mop::Contiguous<&mop::dropout_add>::call));
  m.impl("dropout_add_backward_cpu", TORCH_BOX(&mop::Contiguous<&mop::dropout_add_backward>::call));
  m.impl("relu_dropout_cpu", TORCH_BOX(&mop::Contiguous<&mop::relu_dropout>::call));
  m.impl("relu_dropout_backward_cpu", TORCH_BOX(&mop::Contiguous<&mop::relu_dropout_backward>::call));
  m.impl("gated_gelu_dropout_cpu", TORCH_BOX(&mop::Contiguous<&mop::gated_gelu_dropout>::call));
  m.impl("gated_gelu_dropout_backward_cpu", TORCH_BOX(&mop::Contiguous<&mop::gated_gelu_dropout_backward>::call));
}

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = MOP_COMPILER;
  info["torch_built_with"] = MOP_TORCH_VERSION;
  info["torch_abi_target"] = "2.10";
  info["vector_levels"] = MOP_LEVELS;
  info["vector_level_here"] = mop::level_name();
  info["cuda"] = MOP_CUDA;
  return info;
}

pybind11::dict plan_phm_linear(int64_t rows, int64_t terms, int64_t g_in, int64_t g_out, int64_t loc_in,
                               int64_t loc_out) {
  const mop::PhmDims dims{terms, 1, g_in, g_out, loc_in, loc_out};
  const mop::ForwardPlan plan = mop::plan_phm_linear(rows, dims);
  const mop::BackwardPlan backward = mop::plan_phm_linear_backward(rows, dims);
  pybind11::dict costs;
  costs["forward"] = pybind11::dict();
  costs["forward"]["W built once"] = plan.weight_once;
  costs["forward"]["rule first"] = plan.rule_first;
  costs["forward"]["local first"] = plan.local_first;
  costs["backward"] = pybind11::dict();
  costs["backward"]["W built once"] = backward.weight_once;
  costs["backward"]["rule first"] = backward.rule_first;
  return costs;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled CPU kernels of mop_kernels; importing it registers their ops with torch.";
  m.def("plan_phm_linear", &plan_phm_linear,
        "Return the cost of each way of phm_linear. Of equal costs the first is taken.");
  m.def("build_info", &build_info, "Return what this binary was built with, and the vector level that it uses here.");
}
