// Calls of the core from Python's threads.
#pragma once

#include <Python.h>

#include "runtime/interruption.hpp"

namespace pydfm::bindings {

/// Lets Python call its handlers of signals that came, of which that of Ctrl-C raises
/// KeyboardInterrupt.
void call_signal_handlers();

/// Takes the GIL again. A thread that comes after the interpreter's end stays here, as it does in
/// Python 3.14.
void take_gil(PyThreadState* thread);

/// Calls the core while other threads of Python run; returns what it does.
template <typename Function>
auto without_gil(const Function& function) {
  // No guard whose destructor takes the GIL: at the interpreter's end that ends the thread, which a
  // destructor must not.
  PyThreadState* const thread = PyEval_SaveThread();
  const auto call = [&] {
    try {
      const Interruptible interruptible(&call_signal_handlers);
      return function();
    } catch (...) {
      take_gil(thread);
      throw;
    }
  };
  auto result = call();
  take_gil(thread);
  return result;
}

}  // namespace pydfm::bindings
