// Which build of the core this is, what the processor can run, errors and signals.
#include <atomic>
#include <chrono>
#include <exception>
#include <string>
#include <thread>

#include <pybind11/pybind11.h>

#include "bindings/calls.hpp"
#include "bindings/register.hpp"
#include "core.hpp"
#include "runtime/errors.hpp"

namespace pydfm::bindings {

namespace py = pybind11;

namespace {

// Its number in Python.
std::atomic<unsigned long> main_thread{0};

void find_main_thread() {
  const py::object thread = py::module_::import("threading").attr("main_thread")();
  main_thread = py::cast<unsigned long>(thread.attr("ident"));
}

py::list supported_instruction_sets() {
  py::list names;
  names.append("baseline");
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3) names.append("v3");
  if (v4) names.append("v4");
#endif
  return names;
}

void translate_error(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const EigensolverError& e) {
    py::set_error(py::module_::import("numpy.linalg").attr("LinAlgError"), e.what());
  }
}

}  // namespace

void call_signal_handlers() {
  // They run on the main thread only; and at the end of a program, another that asked for the GIL
  // would not get it.
  if (PyThread_get_thread_ident() != main_thread) return;
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void take_gil(PyThreadState* thread) {
  // Before Python 3.14 the thread would be ended by unwinding, which destroys references to objects
  // without the GIL. Nothing else is thrown here.
  try {
    PyEval_RestoreThread(thread);
  } catch (...) {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

void register_runtime(py::module_& m) {
  using namespace py::literals;
  m.attr("instruction_set") = core::instruction_set();
  m.attr("eigen_version") = core::eigen_version();
  m.attr("compiler") = PYDFM_COMPILER;
  m.def("supported_instruction_sets", &supported_instruction_sets);

  find_main_thread();
  const py::module_ os = py::module_::import("os");
  if (py::hasattr(os, "register_at_fork")) {
    // A child's main thread is the one that forked.
    os.attr("register_at_fork")("after_in_child"_a = py::cpp_function(&find_main_thread));
  }
  py::register_local_exception_translator(&translate_error);
}

}  // namespace pydfm::bindings
