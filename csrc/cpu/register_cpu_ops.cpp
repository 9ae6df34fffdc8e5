// Registers the CPU kernels with the ops that mop_kernels/ops.py defines, and builds the module mop_kernels._C.
#include "../python_module.h"
#include "cpu_ops.h"

STABLE_TORCH_LIBRARY_FRAGMENT(mop_kernels, m) {
  m.def("softmax_piece(Tensor(a!) logits, Tensor(b!) peak, Tensor(c!) total) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mop_kernels, CPU, m) {
  m.impl("softmax_piece", TORCH_BOX(&mop::softmax_piece));
  mop::register_ops(m, "cpu");
  m.impl("local_linear_cpu", TORCH_BOX(&mop::Contiguous<&mop::local_linear>::call));
  // the ready forms: the same kernels without their differentiable form (ops.py)
  m.impl("phm_weight_cpu.ready", TORCH_BOX(&mop::Contiguous<&mop::phm_weight>::call));
  m.impl("phm_linear_cpu.ready", TORCH_BOX(&mop::Contiguous<&mop::phm_linear>::call));
  m.impl("lowrank_phm_linear_cpu.ready", TORCH_BOX(&mop::Contiguous<&mop::lowrank_phm_linear>::call));
  m.impl("local_linear_cpu.ready", TORCH_BOX(&mop::Contiguous<&mop::local_linear>::call));
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

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:s}", "compiler", MOP_COMPILER, "torch_built_with", MOP_TORCH_VERSION,
                       "torch_abi_target", "2.10", "vector_levels", MOP_LEVELS, "vector_level_here", mop::level_name(),
                       "cuda", MOP_CUDA);
}

PyObject* plan_phm_linear(PyObject*, PyObject* arguments) {
  long long rows, terms, g_in, g_out, loc_in, loc_out;
  if (!PyArg_ParseTuple(arguments, "LLLLLL:plan_phm_linear", &rows, &terms, &g_in, &g_out, &loc_in, &loc_out))
    return nullptr;
  const mop::PhmDims dims{terms, 1, g_in, g_out, loc_in, loc_out};
  const mop::ForwardPlan plan = mop::plan_phm_linear(rows, dims);
  const mop::BackwardPlan backward = mop::plan_phm_linear_backward(rows, dims);
  const auto number = [](mop::i64 cost) { return static_cast<long long>(cost); };
  return Py_BuildValue("{s:{s:L,s:L,s:L},s:{s:L,s:L}}", "forward", "W built once", number(plan.weight_once),
                       "rule first", number(plan.rule_first), "local first", number(plan.local_first), "backward",
                       "W built once", number(backward.weight_once), "rule first", number(backward.rule_first));
}

PyMethodDef functions[] = {{"plan_phm_linear", &plan_phm_linear, METH_VARARGS,
                            "Return the cost of each way of phm_linear. Of equal costs the first is taken."},
                           {"build_info", &build_info, METH_NOARGS,
                            "Return what this binary was built with, and the vector level that it uses here."},
                           {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return mop::python_module("mop_kernels._C",
                            "The compiled CPU kernels of mop_kernels; importing it registers their ops with torch.",
                            functions);
}
