// Calls of the core from Python's threads.
#pragma once

#include <pybind11/gil.h>

#include "runtime/interruption.hpp"

namespace pydfm::bindings {

/// Notes which thread is Python's main one.
void find_main_thread();

/// Lets Python call its handlers of signals that came, of which that of Ctrl-C raises
/// KeyboardInterrupt.
void call_signal_handlers();

/// Calls the core while other threads of Python run.
template <typename Function>
auto without_gil(const Function& function) {
  const pybind11::gil_scoped_release release;
  const Interruptible interruptible(&call_signal_handlers);
  return function();
}

}  // namespace pydfm::bindings
