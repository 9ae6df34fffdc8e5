// A library of ops as a Python module. Python.h is included under Py_LIMITED_API, so that one binary serves
// CPython 3.11 and later. A free-threaded Python has no limited API: setup.py compiles for this Python alone there.
#pragma once
#include <Python.h>

namespace mop {

// Returns what the function PyInit_NAME of a module must return. A process has one module of each name.
inline PyObject* python_module(const char* name, const char* doc, PyMethodDef* methods) {
  static PyModuleDef_Slot slots[] = {
#if defined(Py_GIL_DISABLED)
      {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
      {0, nullptr}};
  static PyModuleDef definition{PyModuleDef_HEAD_INIT, name, doc, 0, methods, slots, nullptr, nullptr, nullptr};
  return PyModuleDef_Init(&definition);
}

}  // namespace mop
